"""What a step of a model costs on given hardware, on paper: bytes, FLOPs, the time that they need at least, and the
time to expect of zigzag's kernels.

Roofline: each part of a step takes the larger of bytes / rate and FLOPs / rate, and the parts follow each other. The
expected time goes by the rates that are reached, and adds a fixed cost for each kernel that waits for the one before.
What is assumed is written on docs/glm-sizes.md.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

from zigzag.plans.layers import LayerPlan
from zigzag.reference.checks import check_count
from zigzag.reference.errors import ArgumentError
from zigzag.sizes.shape import ModelShape, check_case, expected_experts, visible_pairs, visible_tokens

_ACTIVATION = 2  # bytes of a number that GPUs send each other


@dataclass(frozen=True)
class Hardware:
    """One GPU: bytes a second from its memory, FLOPs a second (bf16), memory bytes, bytes a second that it sends.

    memory_share, flop_share: of the rates, what a large copy and a large matrix product reach
    kernel_seconds: what a kernel costs, beside its bytes, that waits for the one before in a CUDA graph
    sum_seconds: what a transfer between GPUs costs there, beside its bytes
    """

    name: str
    memory_rate: float
    flop_rate: float
    memory_bytes: float
    link_rate: float
    memory_share: float = 1.0
    flop_share: float = 1.0
    kernel_seconds: float = 0.0
    sum_seconds: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self)[1:]:
            value = getattr(self, field.name)
            if not (value > 0 or (field.name.endswith("_seconds") and value == 0)):
                raise ArgumentError(f"Hardware: {field.name} must be above 0, got {value}")

    @property
    def reached(self) -> "Hardware":
        """The same GPU with the rates that are reached."""
        return replace(
            self,
            memory_rate=self.memory_rate * self.memory_share,
            flop_rate=self.flop_rate * self.flop_share,
            memory_share=1.0,
            flop_share=1.0,
        )


# Rates from NVIDIA's datasheets of the SXM cards: dense bf16 is half of the figure "with sparsity", a direction of
# NVLink half of the figure for both. Shares: what `zigzag bench` measured on one H100, 2.99 of 3.35 TB/s and 783 of
# 989.5 TFLOP/s. kernel_seconds: there, a decode step's time beyond its bytes over its kernels. The H200 has the same
# processor; its memory was not measured for this. sum_seconds: an all-reduce of 8 KiB by NCCL between two H200s, in a
# CUDA graph (docs/benchmarks/parallel_h200.md).
_REACHED = {"memory_share": 0.89, "flop_share": 0.79, "kernel_seconds": 2.5e-6, "sum_seconds": 10.6e-6}
HARDWARE = {
    "H100": Hardware("H100", 3.35e12, 989.5e12, 80e9, 450e9, **_REACHED),
    "H200": Hardware("H200", 4.8e12, 989.5e12, 141e9, 450e9, **_REACHED),
}

# Kernels of a decode step, one after the other: transformers' modules as zigzag captures them, for each layer that has
# the part. Attention is two where keys are split: its reads over all of the card, then the merge.
KERNELS = {
    "attention projections": 18,  # four products, twelve of the rotary embedding, two writes into the cache
    "KV cache": 2,
    "dense feed-forward": 5,
    "shared experts": 6,
    "routed experts": 2,
    "routers and norms": 5,  # of the router; and of each layer, with experts or not:
    "norms and sums": 4,
    "head": 2,
    "embedding": 7,
    "projection": 3,
}


def hardware_by_name(name: str) -> Hardware:
    """A built-in card; ArgumentError lists them."""
    if name not in HARDWARE:
        raise ArgumentError(f"sizes: hardware must be one of {', '.join(HARDWARE)}, got {name!r}")
    return HARDWARE[name]


@dataclass(frozen=True)
class Layout:
    """How a model lies on max(tp, ep) GPUs.

    tp: GPUs that split every attention head set, dense matrix, the embedding and the head between them; where ep is
        larger, ep / tp such groups share the batch
    ep: groups that hold whole experts; the matrices of an expert are split in tp / ep where tp is larger
    """

    tp: int = 1
    ep: int = 1

    def __post_init__(self) -> None:
        for name in ("tp", "ep"):
            object.__setattr__(self, name, check_count("Layout", name, getattr(self, name)))
        if max(self.tp, self.ep) % min(self.tp, self.ep):
            raise ArgumentError(f"Layout: one of tp and ep must divide the other, got tp = {self.tp}, ep = {self.ep}")

    @property
    def gpus(self) -> int:
        return max(self.tp, self.ep)

    @property
    def replicas(self) -> int:
        """Groups of tp GPUs that each serve a share of the batch."""
        return self.gpus // self.tp

    def check(self, shape: ModelShape, batch: int) -> None:
        """ArgumentError where the model or the batch cannot be split so."""
        heads, kv_heads = shape.num_heads, shape.num_kv_heads
        if heads % self.tp or max(kv_heads, self.tp) % min(kv_heads, self.tp):
            raise ArgumentError(f"sizes: tp = {self.tp} does not split {heads} heads and {kv_heads} KV heads evenly")
        if self.ep > 1 and (not shape.num_experts or shape.num_experts % self.ep):
            raise ArgumentError(f"sizes: ep = {self.ep} does not split the {shape.num_experts} experts evenly")
        if batch % self.replicas:
            raise ArgumentError(f"sizes: batch must be a multiple of ep / tp = {self.replicas}, got {batch}")


ONE_GPU = Layout()


@dataclass(frozen=True)
class Part:
    """A part of a step on one GPU: bytes read from its memory, FLOPs, bytes sent to others, kernels in a row.

    sums: transfers between GPUs, each of which waits for all of them
    """

    name: str
    read_bytes: float = 0.0
    flops: float = 0.0
    sent_bytes: float = 0.0
    kernels: int = 0
    sums: int = 0

    def times(self, count: int, name: str) -> "Part":
        return Part(
            f"{name}: {self.name}",
            count * self.read_bytes,
            count * self.flops,
            count * self.sent_bytes,
            count * self.kernels,
            count * self.sums,
        )

    def seconds(self, hardware: Hardware) -> float:
        """At least: the larger of bytes / rate and FLOPs / rate, then what is sent."""
        return (
            max(self.read_bytes / hardware.memory_rate, self.flops / hardware.flop_rate)
            + self.sent_bytes / hardware.link_rate
        )

    def expected_seconds(self, hardware: Hardware) -> float:
        """By the rates that are reached, with the fixed cost of kernels and transfers."""
        fixed = self.kernels * hardware.kernel_seconds + self.sums * hardware.sum_seconds
        return self.seconds(hardware.reached) + fixed


@dataclass(frozen=True)
class Cost:
    """The parts of a step on one GPU."""

    parts: tuple[Part, ...]

    def part(self, name: str) -> Part:
        return next(part for part in self.parts if part.name == name)

    @property
    def read_bytes(self) -> float:
        return sum(part.read_bytes for part in self.parts)

    @property
    def kv_read_bytes(self) -> float:
        """Of `read_bytes`, keys and values."""
        return sum(part.read_bytes for part in self.parts if part.name.endswith("KV cache"))

    @property
    def flops(self) -> float:
        return sum(part.flops for part in self.parts)

    @property
    def sent_bytes(self) -> float:
        return sum(part.sent_bytes for part in self.parts)

    def seconds(self, hardware: Hardware) -> float:
        """At least, over all parts."""
        return sum(part.seconds(hardware) for part in self.parts)

    def expected_seconds(self, hardware: Hardware) -> float:
        """To expect of zigzag's kernels in a CUDA graph, over all parts."""
        return sum(part.expected_seconds(hardware) for part in self.parts)


@dataclass(frozen=True)
class Case:
    """A model under a layer plan at one context and batch, laid out on GPUs.

    batch: sequences in all replicas together, each with `context` tokens
    weight_itemsize, kv_itemsize: bytes a number of weights, of keys and values

    Raises ArgumentError for what cannot be laid out so.
    """

    shape: ModelShape
    plan: LayerPlan
    context: int
    batch: int = 1
    layout: Layout = ONE_GPU
    weight_itemsize: float = 2
    kv_itemsize: int = 2

    def __post_init__(self) -> None:
        context, batch = check_case(self.shape, self.plan, self.context, self.batch)
        object.__setattr__(self, "context", context)
        object.__setattr__(self, "batch", batch)
        object.__setattr__(self, "kv_itemsize", check_count("sizes", "kv_itemsize", self.kv_itemsize))
        self.layout.check(self.shape, self.batch)
        if not self.weight_itemsize > 0:
            raise ArgumentError(f"sizes: weight_itemsize must be above 0 bytes, got {self.weight_itemsize}")

    @property
    def rows(self) -> int:
        """Sequences of one replica."""
        return self.batch // self.layout.replicas

    def decode(self, drafts: int = 0) -> Cost:
        """One step of every sequence: with drafts, the MTP layer drafts so many tokens one by one, then one forward
        verifies them and the token before them."""
        drafts = check_count("sizes", "drafts", drafts, least=0)
        if drafts and not self.shape.num_mtp_layers:
            raise ArgumentError(f"sizes: {self.shape.name} has no MTP layer that could draft; give drafts = 0")
        mtp = [part.times(drafts, "MTP") for part in self._draft()] if drafts else []
        return Cost((*self.forward(drafts + 1).parts, *_cost(*mtp).parts))

    def forward(self, tokens: int = 1) -> Cost:
        """One forward of the main model over `tokens` new tokens of every sequence, each with its logits."""
        shape = self.shape
        seen = sum(visible_tokens(self.plan, layer, self.context) for layer in range(shape.num_layers))
        return _cost(
            *self._layers(shape.num_dense_layers, shape.num_expert_layers, tokens),
            self._attention(self._kv_bytes(), tokens * seen, shape.num_layers),
            *self._ends(tokens, tokens),
        )

    def prefill(self) -> Cost:
        """Reading the context at once: keys and values are written once, in full; the head serves the last token."""
        shape, layers = self.shape, range(self.shape.num_layers)
        pairs = sum(visible_pairs(self.plan, layer, self.context) for layer in layers)
        return _cost(
            *self._layers(shape.num_dense_layers, shape.num_expert_layers, self.context),
            self._attention(len(layers) * self._full_layer_bytes, pairs, len(layers)),
            *self._ends(self.context, min(self.context, 1)),
        )

    def memory_bytes(self, drafts: int = 0) -> float:
        """Of one GPU: all weights and the KV cache of the context, with the MTP layer if it drafts."""
        shape, tp = self.shape, self.layout.tp
        weights = self._weights(shape.num_dense_layers, shape.num_expert_layers, shape.num_experts)
        total = sum(weights.values()) + shape.embedding_parameters * (1 if shape.tied else 2) / tp + shape.hidden_size
        kv = self._kv_bytes()
        if drafts:
            mtp = sum(self._weights(0, 1, shape.num_experts).values()) + self._projection
            total += shape.num_mtp_layers * mtp
            kv += shape.num_mtp_layers * self._full_layer_bytes
        return total * self.weight_itemsize + kv

    # Numbers of one GPU.

    @property
    def _kv_split(self) -> int:
        """GPUs between which KV heads are split; beyond that they are copied."""
        return min(self.layout.tp, self.shape.num_kv_heads)

    @property
    def _projection(self) -> float:
        """Parameters of an MTP layer beside its expert layer: state and embedding to one input, and three norms."""
        hidden = self.shape.hidden_size
        return 2 * hidden**2 / self.layout.tp + 3 * hidden

    def _kv_bytes(self) -> float:
        return self.shape.kv_bytes(self.plan, self.context, self.rows, self.kv_itemsize) / self._kv_split

    @property
    def _full_layer_bytes(self) -> float:
        """Keys and values of one layer that keeps its full cache."""
        token = 2 * self.shape.num_kv_heads * self.shape.head_size * self.kv_itemsize
        return self.rows * self.context * token / self._kv_split

    def _weights(self, dense: int, experts: int, distinct: float) -> dict[str, float]:
        """Parameters of so many layers, by part, with `distinct` of the routed experts."""
        shape, tp = self.shape, self.layout.tp
        layers = dense + experts
        return {
            "attention projections": layers
            * (shape.query_output_parameters / tp + shape.key_value_parameters / self._kv_split),
            "dense feed-forward": dense * shape.feed_forward_parameters / tp,
            "shared experts": experts * shape.num_shared_experts * shape.expert_parameters / tp,
            "routers and norms": experts * shape.router_parameters + layers * shape.norm_parameters,
            "routed experts": experts * distinct * shape.expert_parameters / self.layout.gpus,
        }

    def _layers(self, dense: int, experts: int, tokens: int) -> Iterable[Part]:
        """Layers without attention's core, for `tokens` tokens of each sequence."""
        shape, layout = self.shape, self.layout
        chosen = expected_experts(shape.num_experts, shape.experts_per_token, self.batch * tokens)
        having = {"attention projections": dense + experts, "dense feed-forward": dense}  # the other parts: experts
        for name, parameters in self._weights(dense, experts, chosen).items():
            kernels = KERNELS[name] * having.get(name, experts)
            flops = self._flops(name, parameters, experts, tokens)
            yield Part(name, parameters * self.weight_itemsize, flops, kernels=kernels if parameters else 0)
        yield Part("norms and sums", kernels=KERNELS["norms and sums"] * (dense + experts))
        state = self.rows * tokens * shape.hidden_size * _ACTIVATION
        sums = 2 * (dense + experts) * _all_reduce(state, layout.tp)
        away = (layout.ep - 1) / layout.ep if layout.ep > layout.tp else 0.0  # else the sums above carry it
        sent = 2 * experts * shape.experts_per_token * state / layout.tp * away
        counted = 2 * (dense + experts) * (layout.tp > 1) + 2 * experts * (away > 0)
        yield Part("between GPUs", sent_bytes=sums + sent, sums=counted)

    def _flops(self, name: str, parameters: float, experts: int, tokens: int) -> float:
        if name != "routed experts":
            return 2 * self.rows * tokens * parameters
        used = experts * self.shape.experts_per_token * self.shape.expert_parameters
        return 2 * self.batch * tokens * used / self.layout.gpus

    def _attention(self, kv_bytes: float, pairs: int, layers: int) -> Part:
        flops = self.rows * self.shape.pair_flops * pairs / self.layout.tp
        return Part("KV cache", kv_bytes, flops, kernels=KERNELS["KV cache"] * layers)

    def _ends(self, embedded: int, scored: int) -> Iterable[Part]:
        """The embedding's sum over GPUs, then the last norm and the head, with logits gathered."""
        shape, tp = self.shape, self.layout.tp
        summed = _all_reduce(self.rows * embedded * shape.hidden_size * _ACTIVATION, tp)
        yield Part("embedding", sent_bytes=summed, kernels=KERNELS["embedding"], sums=int(tp > 1))
        parameters = shape.embedding_parameters / tp + shape.hidden_size
        gathered = self.rows * scored * shape.vocab_size * _ACTIVATION * (tp - 1) / tp
        read, flops = parameters * self.weight_itemsize, 2 * self.rows * scored * parameters
        yield Part("head", read, flops, gathered, KERNELS["head"], int(tp > 1))

    def _draft(self) -> Iterable[Part]:
        """One token of every sequence through an MTP layer with full attention, and the head."""
        yield from self._layers(0, 1, 1)
        yield self._attention(self._full_layer_bytes, self.context, 1)
        extra = self._projection - self.shape.hidden_size  # its last norm is counted with the head
        yield Part("projection", extra * self.weight_itemsize, 2 * self.rows * extra, kernels=KERNELS["projection"])
        yield from self._ends(1, 1)


def _cost(*parts: Part) -> Cost:
    """Without the parts that cost nothing."""
    return Cost(tuple(part for part in parts if part != Part(part.name)))


def _all_reduce(size: float, gpus: int) -> float:
    """Bytes that each of the GPUs sends to sum `size` bytes over all, in a ring."""
    return 2 * size * (gpus - 1) / gpus
