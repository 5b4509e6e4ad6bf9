// Of all attention kernels, which are launched with the same arguments.

#define ATTENTION_PARAMETERS \
    const element* __restrict__ query, const element* __restrict__ key, const element* __restrict__ value, \
    element* __restrict__ output, float* __restrict__ lse, \
    const long long* __restrict__ query_at, const long long* __restrict__ key_at, \
    float* parts, float* sums, \
    long long key_batch, long long key_head, long long key_token, \
    long long value_batch, long long value_head, long long value_token, \
    long long query_at_batch, long long key_at_batch, \
    int num_queries, int num_keys, int groups, int share, int sink, int recent, int align, float scale
