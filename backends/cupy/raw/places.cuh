// Which keys the kernels on tensor cores read. Constants: STREAMING, EXPLICIT.

#if EXPLICIT
typedef long long position;
#else
typedef int position;
#endif

// The keys that some queries see: some sinks, then a run.
struct Places {
    int sinks, first, count;
    __device__ int of(int index) const { return index < sinks ? index : first + index - sinks; }
};

// Those of neighbouring queries, by where these stand; with positions nothing is known of the keys' order.
__device__ __forceinline__ Places places_of(
    int first_query, int last_query, int num_keys, int sink, int recent, int align
) {
    Places places = {0, 0, num_keys};
#if !EXPLICIT
    const int end = last_query + 1;
#if STREAMING
    places.first = recent ? max(0, (first_query + align) / align * align - recent) : end;
    places.sinks = min(min(sink, end), places.first);
#endif
    places.count = places.sinks + max(0, end - places.first);
#endif
    return places;
}
