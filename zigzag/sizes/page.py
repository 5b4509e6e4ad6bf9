"""The tables of `zigzag sizes`, and the Markdown page of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

from zigzag.reference import expected_tokens
from zigzag.reference.errors import ArgumentError
from zigzag.sizes.roofline import HARDWARE, ONE_GPU, Case, Cost, Hardware, Layout
from zigzag.sizes.shape import RECENT, SINK, ModelShape, streaming_plan

ASSUMPTIONS = """\
- **Nothing here is measured on these models.** It is arithmetic on a model's configuration: *step* from a data sheet
  alone, a bound; *expected* with the rates that one H100 reaches and the cost of its kernels. Slices of Air took 0.94
  to 1.14 of it on one H100 (docs/benchmarks/slices_h100.md); of eight layers on one and two H200s, behind 32,768 tokens
  (docs/benchmarks/parallel_h200.md), 0.72 to 0.80 with one sequence, since modules have been fused since kernels were
  counted, 0.96 to 1.00 with 8, 1.19 to 1.30 with 32. Sampling, activations in memory and uneven experts cost nothing in
  either.
- **Models.** glm4_moe, llama, mistral, qwen2, qwen3, with full attention in every layer. Of a vision-language model the
  text part: the weights and the time of its vision part are not counted, an image's tokens are context. Anything else
  is refused, multi-head latent attention and attention windows too.
- **Parameters.** Every weight, bias and norm. *Active*: what one token is multiplied with; an embedding row is not
  counted. *Stored*: with the MTP layer and the copies of embedding and head that GLM-4.5's checkpoints keep in it.
- **KV cache.** `LayerPlan.kv_bytes`: full layers keep the context, streaming layers at most sink + recent tokens; no
  spare slots. floor(L x share) layers stream; which ones does not matter here. The MTP layer's own cache is full.
- **Prefill.** 2 FLOPs for each active parameter (without head) and token; 4 x heads x head size for each pair of a
  query and a key that it sees: all earlier ones, or sink + recent in a streaming layer. The head serves the last token.
- **Bytes of a decode step.** Each weight that is needed is read once, for all sequences and tokens of the step; of E
  routed experts, E (1 - (1 - k / E)^T) for T tokens that choose k each: even, independent routing. Real routing is
  uneven and alike in neighbouring tokens, which reads less in all and more on the busiest GPU. The KV cache is read
  once a step, also for several tokens of a sequence. What is written is not counted.
- **Drafts.** With K drafts the MTP layer runs K times, for one token of each sequence, with the head each time; the
  main model verifies K + 1 tokens in one forward. Each draft that is reached is accepted with the same probability a,
  so a step gives 1 + a + ... + a^K tokens. The a here is an assumption.
- **Time.** Roofline: each part of a step (projections, attention, routed and shared experts, norms, head) takes the
  larger of bytes / memory rate and FLOPs / bf16 rate, also with 8-bit weights; the parts and the transfers between GPUs
  follow each other. In a prefill weights are read and keys and values written once; nothing else moves.
- **Expected time.** The same by 0.89 of the memory rate and 0.79 of the bf16 rate, what a large copy and a large
  matrix product reach on one H100, 2.5 µs for each kernel that waits for the one before, and 10.6 µs for each transfer
  between GPUs, two a layer, what an all-reduce between two H200s takes; between more it may be longer. A rate given as
  measured (`--memory-rate`, `--flop-rate`) is taken as it is, also for *step*. Kernels are counted as zigzag's decode
  step in a CUDA graph had them before modules were fused: 37 in an expert layer, 29 in a dense one, 9 around them.
- **GPUs.** max(tp, ep) of them. Split by tp: heads, dense and shared feed-forward, embedding, head, the MTP layer
  likewise, as engines do; `zigzag`'s own run on several GPUs holds the MTP layer whole, so with drafts each of its GPUs
  needs more than is said here. KV heads are split while there are enough, then copied. Copied: routers and norms.
  Routed experts: whole ones on ep groups, evenly used; their matrices are split where tp is larger. With ep > tp,
  ep / tp groups of tp GPUs share the batch. Sent, at 2 bytes a number: two ring all-reduces a layer and one for the
  embedding, 2 (n - 1) / n of the hidden states from each GPU; the logits; with ep > tp each token to its experts and
  back.
- **Hardware.** NVIDIA's data sheets, SXM cards, dense bf16, one direction of NVLink."""


@dataclass(frozen=True)
class Question:
    """What the tables are asked for; `shares` of layers stream, `drafts` come from the MTP layer if there is one."""

    contexts: Sequence[int] = (32_768, 131_072)
    shares: Sequence[float] = (0.0, 0.25, 0.5, 0.75)
    batches: Sequence[int] = (1,)
    layout: Layout = ONE_GPU
    hardware: Hardware = HARDWARE["H100"]
    drafts: int = 1
    acceptance: float = 0.8
    sink: int = SINK
    recent: int = RECENT
    weight_bits: int = 16
    kv_bits: int = 16

    def __post_init__(self) -> None:
        for name, bits in (("weight_bits", self.weight_bits), ("kv_bits", self.kv_bits)):
            if bits not in (8, 16, 32):
                raise ArgumentError(f"sizes: {name} must be 8, 16 or 32, got {bits}")

    def drafts_of(self, shape: ModelShape) -> int:
        return self.drafts if shape.num_mtp_layers else 0

    def cases(self, shape: ModelShape, layout: Layout) -> Iterable[tuple[list[str], Case]]:
        """(the first cells of a row, case), by batch, context and share."""
        for batch, context, share in product(self.batches, self.contexts, self.shares):
            plan = streaming_plan(shape, share, self.sink, self.recent)
            case = Case(shape, plan, context, batch, layout, self.weight_bits / 8, self.kv_bits // 8)
            streaming = f"{len(plan.streaming_layers)} of {plan.num_layers}"
            yield [f"{batch:,}", f"{context:,}", streaming], case


@dataclass(frozen=True)
class Grid:
    """A table of texts."""

    title: str
    head: tuple[str, ...]
    rows: list[list[str]]

    def markdown(self) -> Iterable[str]:
        yield f"## {self.title}"
        yield ""
        yield f"| {' | '.join(self.head)} |"
        yield "|---" + "|---:" * (len(self.head) - 1) + "|"
        for row in self.rows:
            yield f"| {' | '.join(row)} |"


def grids(shape: ModelShape, question: Question) -> list[Grid]:
    """Parameters, the model's own costs, and those on the GPUs asked for."""
    return [_parameters(shape), _costs(shape, question), _on_gpus(shape, question)]


def page(shapes: Sequence[ModelShape], question: Question, command: str) -> str:
    """The Markdown page that `command` prints."""
    lines = ["# The big ones on paper", "", f"Made by `{command}`.", ""]
    lines += [
        "What a model of this shape must hold, read and compute, with and without streaming layers "
        f"(sink {question.sink}, recent {question.recent}), from its configuration alone.",
    ]
    for shape in shapes:
        for grid in grids(shape, question):
            lines += ["", *grid.markdown()]
    return "\n".join([*lines, "", "## Assumptions", "", ASSUMPTIONS, ""])


def _parameters(shape: ModelShape) -> Grid:
    rows = [[name, f"{count:,}", _billions(count)] for name, count in shape.parameters().items() if count]
    totals = {"main model": shape.main_parameters}
    if shape.num_mtp_layers:
        totals |= {"MTP block": shape.mtp_block_parameters, "stored, with MTP": shape.stored_parameters}
    totals["active for a token, with the head"] = shape.active_parameters()
    totals["active for a token, without the head"] = shape.active_parameters(head=False)
    rows += [[f"**{name}**", f"{count:,}", _billions(count)] for name, count in totals.items()]
    return Grid(f"{shape.name}: parameters", ("part", "parameters", "billions"), rows)


def _costs(shape: ModelShape, question: Question) -> Grid:
    drafts = question.drafts_of(shape)
    head: tuple[str, ...] = (
        "batch",
        "context",
        "streaming layers",
        "KV cache, GiB",
        "prefill, TFLOP",
        "of full attention",
        "read a step, GB",
        "of it KV, GB",
    )
    if drafts:
        head += (f"with {_count(drafts)}, GB", "ratio")
    rows = []
    for cells, case in question.cases(shape, ONE_GPU):
        full = shape.prefill_flops(streaming_plan(shape, 0), case.context, case.batch)
        flops = shape.prefill_flops(case.plan, case.context, case.batch)
        step = case.decode()
        held = shape.kv_bytes(case.plan, case.context, case.batch, case.kv_itemsize)
        cells += [
            f"{held / 2**30:.3f}",
            f"{flops / 1e12:,.1f}",
            f"{flops / full:.3f}" if full else "",
            f"{step.read_bytes / 1e9:.2f}",
            f"{step.kv_read_bytes / 1e9:.2f}",
        ]
        if drafts:
            drafted = case.decode(drafts).read_bytes
            cells += [f"{drafted / 1e9:.2f}", f"{drafted / step.read_bytes:.2f}"]
        rows.append(cells)
    bits = f"{question.weight_bits}-bit weights, {question.kv_bits}-bit KV cache"
    return Grid(f"{shape.name}: memory, arithmetic, bytes ({bits})", head, rows)


def _on_gpus(shape: ModelShape, question: Question) -> Grid:
    drafts, hardware, layout = question.drafts_of(shape), question.hardware, question.layout
    head: tuple[str, ...] = (
        "batch",
        "context",
        "streaming layers",
        "a GPU holds, GB",
        "prefill, s",
        "sent a step, MB",
        "step, ms",
        "expected, ms",
        "tokens/s",
    )
    if drafts:
        head += (f"with {_count(drafts)}, ms", "expected, ms", f"tokens/s, a = {question.acceptance:g}")
    rows = []
    for cells, case in question.cases(shape, layout):
        step, held = case.decode(), case.memory_bytes(drafts)
        fits = "" if held <= hardware.memory_bytes else ", too much"
        cells += [
            f"{held / 1e9:.1f}{fits}",
            f"{case.prefill().seconds(hardware):.3f}",
            f"{step.sent_bytes / 1e6:.2f}",
            *_speed(step, hardware, case.batch),
        ]
        if drafts:
            tokens = case.batch * expected_tokens(question.acceptance, drafts)
            cells += _speed(case.decode(drafts), hardware, tokens)
        rows.append(cells)
    gpus = f"{layout.gpus} x {hardware.name} of {hardware.memory_bytes / 1e9:g} GB, tp {layout.tp}, ep {layout.ep}"
    rates = f"{hardware.memory_rate / 1e12:g} TB/s, {hardware.flop_rate / 1e12:g} TFLOP/s"
    return Grid(f"{shape.name}: on {gpus} ({rates}, links {hardware.link_rate / 1e9:g} GB/s)", head, rows)


def _speed(step: Cost, hardware: Hardware, tokens: float) -> list[str]:
    """Milliseconds at least and as expected, and tokens a second as expected."""
    expected = step.expected_seconds(hardware)
    return [f"{1e3 * step.seconds(hardware):.3f}", f"{1e3 * expected:.3f}", f"{tokens / expected:,.0f}"]


def _billions(count: int) -> str:
    return f"{count / 1e9:.3f}"


def _count(drafts: int) -> str:
    return "1 draft" if drafts == 1 else f"{drafts} drafts"
