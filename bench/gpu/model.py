"""What each GPU kernel should take, counted before it is measured: bytes, operations, instructions.

Every kernel gets a few terms, each the time that one part of the chip would need alone:

- memory: bytes that must cross device memory, at the copy rate;
- L2: bytes of weights or gradients that do not stay in the first-level cache of their processor;
- load: accesses of a warp to first-level cache or shared memory, one a clock and multiprocessor;
- issue: warp instructions, four a clock and multiprocessor;
- arithmetic: multiply-adds of the dense products at the rate of the unit that does them;
- latency: what one exchange between steps takes however little there is to do, times the exchanges
  that follow one another.

The prediction is the largest term and a launch; terms overlap, and a kernel that does not overlap
them takes longer. The constants below that were counted from instructions say so; none of them was
fitted to a measurement.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bench.floors import KEPT_BYTES
from fastlif.ops import Connection, LayerPlan

WARP = 32
STEPS_PER_EXCHANGE = 2
# Warp instructions of a pair of steps, counted in the source with addressing and loops.
GATHER = 24  # the sources of a neuron: their addresses and numbers, and the first two spikes
TRIP, TRIP_SPIKES = 40, 4  # a pass of the loop over spikes: up to so many of either step
NEURON_FORWARD = 130  # state from shared memory and back, both steps, stores, masks
LOOKUP = 135  # of 32 positions and kernel rows of a convolution, for all their channels
LIST = 80  # 32 words of a mask of one step into a list
NEURON_BACKWARD, NEURON_BACKWARD_TF32 = 80, 100  # loads, surrogate, two adjoints, stores
LAYERS_BACKWARD = 4000  # of a block: what every warp does once for each of its layers
# The exact product: channels x positions x samples x steps in registers.
CHANNELS = 4  # of a thread: one load of 16 bytes
MOST_SUMS = 32  # of a thread
PRODUCT_OVERHEAD = 4.25  # of the loop over out channels
PRODUCT_TASK = 9  # kernel taps and tasks around that loop, for each of its turns
# The TF32 product, per instruction of 16 x 8 x 8: itself and its fragments, taps and tasks around
# it, and the accesses to shared memory and weights.
MMA, MMA_TASK, MMA_LOADS = 7.5, 7, 4
# The products of the busiest warp over the mean of all, simulated for the recurrent SHD conv-3.
BALANCE, BALANCE_TF32 = 1.07, 1.15
MMA_CHANNELS, MMA_PRODUCTS = 16, 16 * 8 * 8
MOST_SAMPLES = 4  # of a block of the backward pass
# The weight gradient: a visit of a warp to 8 rows x 4 words, and four spikes of one row in it.
VISIT_ROWS, VISIT_WORDS, VISIT_WARPS = 8, 4, 16
VISIT, ROW_TRIP = 80, 40
SCAN_FORWARD, SCAN_BACKWARD = 16, 36  # of a neuron-step
# Clocks in which a block waits: two barriers, listing, the neuron; and per pass of the gather loop
# a look-up in shared memory, a weight from the first- or second-level cache, four additions.
EXCHANGE_CLOCKS, NEAR_CLOCKS, FAR_CLOCKS = 400, 90, 300
WEIGHT_CACHE = 64 * 1024  # bytes of first-level cache left beside shared memory
SMALL_KERNELS = 40  # loss, bounds, weights into kernel order, optimizer: a launch each


@dataclass(frozen=True)
class Ceilings:
    """What a chip reaches at best; rates per second, a multiply-add counted once."""

    name: str
    copy: float  # bytes of device memory, read and written
    l2: float  # bytes
    multiply_adds: float  # float32
    tensor_multiply_adds: float  # tf32, in the instructions that need no descriptors
    multiprocessors: int
    clock: float  # Hz
    launch: float  # seconds from the end of a kernel to the start of the next in a graph

    @property
    def issue(self) -> float:
        """Warp instructions."""
        return 4 * self.multiprocessors * self.clock

    @property
    def loads(self) -> float:
        """Accesses of a whole warp to first-level cache or shared memory."""
        return self.multiprocessors * self.clock


# 400 TFLOP/s dense in tf32, of which warp-level instructions are known to reach about 60 %.
H100 = Ceilings("H100", 3.0e12, 5.5e12, 33.5e12, 0.6 * 200e12, 132, 1.7e9, 2e-6)


@dataclass(frozen=True)
class Estimate:
    """Predicted time of one kernel over a training step."""

    kernel: str  # as it is called in csrc/cuda/launch.h
    terms: dict[str, float]  # seconds
    launches: int = 1
    launch: float = H100.launch

    @property
    def limit(self) -> str:
        """The largest term."""
        return max(self.terms, key=self.terms.__getitem__) if self.terms else "launch"

    @property
    def seconds(self) -> float:
        """The prediction."""
        return max(self.terms.values(), default=0.0) + self.launches * self.launch


@dataclass(frozen=True)
class Synapses:
    """Counts of one connection per sample and step."""

    density: float  # spikes per source neuron and step
    link: Connection
    outputs: int  # channels
    positions: int
    recurrent: bool

    @property
    def all(self) -> int:
        """Synapses, those that reach over the edge of a map included."""
        return self.outputs * self.positions * self.link.fan_in

    @property
    def weights(self) -> int:
        """Numbers in the weight."""
        return self.outputs * self.link.fan_in

    @property
    def warps(self) -> int:
        """Warps with a neuron per lane."""
        return math.ceil(self.outputs * self.positions / WARP)

    @property
    def trips(self) -> float:
        """Passes of the gather loop: the lane with most spikes decides, 1.5 deviations above."""
        mean = self.density * self.link.fan_in
        rows = self.link.kernel[0] if self.positions > 1 else 1
        return rows * max(1.0, (mean / rows + 1.5 * (mean / rows) ** 0.5) / TRIP_SPIKES)


def synapses_of(plans: Sequence[LayerPlan], densities: Sequence[float]) -> list[list[Synapses]]:
    """Per layer: the feed-forward synapses if there are any, then the recurrent ones."""
    result = []
    for index, plan in enumerate(plans):
        channels, height, width = plan.shape
        own = []
        if plan.feedforward is not None:
            own.append(
                Synapses(densities[index], plan.feedforward, channels, height * width, False)
            )
        if plan.recurrent_kernel is not None:
            kernel = plan.recurrent_kernel
            padding = (kernel[0] // 2, kernel[1] // 2)
            link = Connection(plan.shape, plan.shape, kernel, padding=padding)
            own.append(Synapses(densities[index + 1], link, channels, height * width, True))
        result.append(own)
    return result


def predict_step(
    plans: Sequence[LayerPlan],
    densities: Sequence[float],  # spikes per neuron and step: the input, then every spiking layer
    batch: int,
    n_steps: int,
    *,
    tf32: bool = False,
    ceilings: Ceilings = H100,
) -> list[Estimate]:
    """The kernels of a training step, packed spikes in, in the order in which they run."""
    steps = batch * n_steps
    links = synapses_of(plans, densities)
    first = plans[0].feedforward
    inputs = math.prod(first.in_shape) if first is not None else 0
    masks = Estimate("words_to_masks", {"memory": 2 * steps * inputs / 8 / ceilings.copy})
    weight_gradients = [
        weight_gradient(synapses, steps, ceilings) for layer in links for synapses in layer
    ]
    small = Estimate("small kernels", {}, SMALL_KERNELS, ceilings.launch)
    return [
        *([masks] if first is not None else []),
        stack_forward(plans, links, inputs, batch, n_steps, ceilings),
        stack_backward(plans, links, batch, n_steps, tf32, ceilings),
        _together("weight_gradient", weight_gradients),
        small,
    ]


def stack_forward(
    plans: Sequence[LayerPlan],
    links: Sequence[Sequence[Synapses]],
    inputs: int,
    batch: int,
    n_steps: int,
    ceilings: Ceilings = H100,
) -> Estimate:
    """All layers of a sample in lockstep, weights of listed spikes gathered; a block per sample."""
    steps = batch * n_steps
    flat = [synapses for layer in links for synapses in layer]
    neurons = [math.prod(plan.features) for plan in plans]
    spiking = sum(n for n, plan in zip(neurons, plans, strict=True) if plan.kind == "lif")
    deliveries = sum(s.density * s.all for s in flat)
    current = 0 if plans[0].feedforward is not None else 4 * neurons[0]
    listed = sum(2 * math.ceil(n / WARP / WARP) for n in (inputs, *neurons))
    instructions = (
        sum(s.warps * (GATHER * s.link.kernel[0] + TRIP * s.trips) for s in flat)
        + sum(math.ceil(n / WARP) for n in neurons) * NEURON_FORWARD
        + listed * LIST
        + sum(
            LOOKUP * math.ceil(s.positions * s.link.kernel[0] / WARP)
            for s in flat
            if s.positions > 1
        )
    )
    missing = _missing(flat)
    trips = max((sum(s.trips for s in layer) for layer in links), default=0.0)
    clocks = EXCHANGE_CLOCKS + trips * (FAR_CLOCKS if missing > 0.1 else NEAR_CLOCKS)
    exchanges = math.ceil(n_steps / STEPS_PER_EXCHANGE)
    terms = {
        "memory": steps * (inputs / 8 + current + KEPT_BYTES * spiking) / ceilings.copy,
        "L2": steps * 4 * deliveries * missing / ceilings.l2,
        "issue": _busiest(batch, ceilings) * exchanges * instructions / (4 * ceilings.clock),
        "latency": exchanges * clocks / ceilings.clock,
    }
    return Estimate("stack_forward", terms, 1, ceilings.launch)


def stack_backward(
    plans: Sequence[LayerPlan],
    links: Sequence[Sequence[Synapses]],
    batch: int,
    n_steps: int,
    tf32: bool,
    ceilings: Ceilings = H100,
) -> Estimate:
    """Adjoint of all layers, a block per one to four samples; W^T G and V^T G two steps at a time.

    A block takes up to four samples where that gives no multiprocessor more of them. Products and
    neurons are separated by barriers, so their instructions add up.
    """
    steps, exchanges = batch * n_steps, math.ceil(n_steps / STEPS_PER_EXCHANGE)
    busiest = _busiest(batch, ceilings)
    samples = max(
        s
        for s in (1, 2, MOST_SAMPLES)
        if s * math.ceil(math.ceil(batch / s) / ceilings.multiprocessors) <= busiest
    )
    # The data needs no gradient: the synapses of the first layer are not walked back.
    products = [s for i, layer in enumerate(links) for s in layer if i > 0 or s.recurrent]
    dense = STEPS_PER_EXCHANGE * sum(s.all for s in products)  # of a sample and exchange
    neurons = sum(math.prod(plan.features) for plan in plans)
    spiking = sum(math.prod(plan.features) for plan in plans if plan.kind == "lif")
    weights = sum(s.weights for s in products)
    if tf32:
        used = dense / MMA_PRODUCTS / _columns_used(products, samples)
        instructions, loads = used * (MMA + MMA_TASK) * BALANCE_TF32, used * MMA_LOADS
        arithmetic = used * MMA_PRODUCTS / ceilings.tensor_multiply_adds
    else:
        instructions = loads = 0.0
        for s in products:
            # Several positions fill a tile; a layer of one has only its samples and steps.
            single = s.link.in_shape[1] * s.link.in_shape[2] == 1
            tile = CHANNELS * STEPS_PER_EXCHANGE * samples if single else MOST_SUMS
            turns = STEPS_PER_EXCHANGE * s.all / WARP / tile
            turn = tile + 1 + tile / 16 + PRODUCT_OVERHEAD + PRODUCT_TASK
            instructions += turns * turn * BALANCE
            loads += turns * (4 + 4 * tile / MOST_SUMS)
        arithmetic = dense / ceilings.multiply_adds
    instructions += (NEURON_BACKWARD_TF32 if tf32 else NEURON_BACKWARD) * neurons / WARP
    instructions += LAYERS_BACKWARD / samples
    serial = busiest * exchanges / ceilings.clock
    terms = {
        "memory": steps * (KEPT_BYTES * spiking + 4 * neurons) / ceilings.copy,
        "L2": batch / samples * exchanges * 4 * weights * _missing(products) / ceilings.l2,
        "load": serial * loads,
        "issue": serial * instructions / 4,
        "arithmetic": batch * exchanges * arithmetic,
        "latency": exchanges * EXCHANGE_CLOCKS / ceilings.clock,
    }
    return Estimate("stack_backward", terms, 1, ceilings.launch)


def weight_gradient(synapses: Synapses, steps: int, ceilings: Ceilings = H100) -> Estimate:
    """Rows of the weight (tap and source channel) by warps; a row of dL/dJ is read for every spike.

    A visit of a warp is 8 rows of the weight and 4 words of 32 steps. The warps of a block share
    rows of dL/dJ in the first-level cache, blocks of other rows read them again from the second.
    """
    groups = math.ceil(synapses.link.fan_in / VISIT_ROWS)
    lanes = min(WARP, max(4, 1 << math.ceil(math.log2(synapses.outputs / 4))))
    own_rows = VISIT_ROWS * lanes // WARP
    column_tiles = math.ceil(synapses.outputs / (4 * lanes))
    row_tiles = math.ceil(groups / VISIT_WARPS)
    words = steps / WARP * synapses.positions
    visits = groups * column_tiles * words / VISIT_WORDS
    spikes = synapses.density * WARP * VISIT_WORDS  # of a row in a visit
    trips = max(1.0, (spikes + spikes**0.5) / 4)
    gradients = steps * 4 * synapses.outputs * synapses.positions
    read = gradients + steps * math.prod(synapses.link.in_shape) / 8
    again = gradients * row_tiles + 4 * words * synapses.link.fan_in * column_tiles
    terms = {
        "memory": read / ceilings.copy,
        "L2": again / ceilings.l2,
        "load": steps * synapses.density * synapses.all / WARP / ceilings.loads,
        "issue": visits * (VISIT + own_rows * ROW_TRIP * trips) / ceilings.issue,
    }
    return Estimate("weight_gradient", terms, 2, ceilings.launch)


def scan_forward(neuron_steps: float, ceilings: Ceilings = H100) -> Estimate:
    """Reads the current, writes U - threshold and the spikes; a thread per neuron."""
    terms = {
        "memory": neuron_steps * (4 + KEPT_BYTES) / ceilings.copy,
        "issue": neuron_steps * SCAN_FORWARD / WARP / ceilings.issue,
    }
    return Estimate("scan_forward", terms, 1, ceilings.launch)


def scan_backward(neuron_steps: float, ceilings: Ceilings = H100) -> Estimate:
    """Reads those and dL/dS, writes dL/dJ."""
    terms = {
        "memory": neuron_steps * (4 + 4 + KEPT_BYTES) / ceilings.copy,
        "issue": neuron_steps * SCAN_BACKWARD / WARP / ceilings.issue,
    }
    return Estimate("scan_backward", terms, 1, ceilings.launch)


def paired_products(
    kernel: str, neurons: int, batch: int, n_steps: int, *, tf32: bool, ceilings: Ceilings = H100
) -> Estimate:
    """One direction of a dense recurrence: per two steps a product of all samples, a kernel."""
    pairs = math.ceil(n_steps / STEPS_PER_EXCHANGE)
    rate = ceilings.tensor_multiply_adds if tf32 else ceilings.multiply_adds
    terms = {"arithmetic": STEPS_PER_EXCHANGE * batch * neurons**2 * pairs / rate}
    return Estimate(kernel, terms, 2 * pairs, ceilings.launch)


def total(estimates: Sequence[Estimate]) -> float:
    """Seconds of kernels that run one after the other."""
    return sum(estimate.seconds for estimate in estimates)


def _busiest(batch: int, ceilings: Ceilings) -> int:
    """Samples of the multiprocessor that has most of them; blocks cannot be divided."""
    return math.ceil(batch / ceilings.multiprocessors)


def _missing(links: Sequence[Synapses]) -> float:
    """Share of the weights read that the first-level cache does not hold."""
    size = 4 * sum(s.weights for s in links)
    return max(0.0, 1.0 - WEIGHT_CACHE / size) if size else 0.0


def _columns_used(products: Sequence[Synapses], samples: int) -> float:
    """Share of a tensor-core instruction's 8 columns that hold numbers which are wanted.

    Columns are samples x steps of neighbouring positions; a layer of one position has no others.
    """
    columns = STEPS_PER_EXCHANGE * samples
    wanted = sum(s.all for s in products)
    if not wanted:
        return 1.0
    padded = sum(
        s.all * (8 / columns if s.link.in_shape[1] * s.link.in_shape[2] == 1 else 1.0)
        for s in products
    )
    return wanted / padded


def _together(kernel: str, estimates: Sequence[Estimate]) -> Estimate:
    """Kernels of one name after each other, as one."""
    seconds: dict[str, float] = {}
    for estimate in estimates:
        limit = estimate.limit
        seconds[limit] = seconds.get(limit, 0.0) + estimate.terms[limit]
    name = " + ".join(sorted(seconds, key=seconds.__getitem__, reverse=True))
    launches = sum(estimate.launches for estimate in estimates)
    return Estimate(kernel, {name: sum(seconds.values())}, launches, estimates[0].launch)
