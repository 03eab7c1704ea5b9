"""What speed costs: every method measured for speed and for quality on one model, in one run.

Quality is how far a method's pictures are from those of sequential decoding and from the data, and
whether they show what the prompt names. Knows workloads, features and names; draws no chart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from visual_ar.data.dataset import Dataset
from visual_ar.evaluation.frechet import frechet_distance, statistics
from visual_ar.evaluation.quality import DISTANCE, NETWORK, TOP, Features, choose
from visual_ar.evaluation.retrieval import retrieve
from visual_ar.evaluation.speed import BASELINE, Schedule, bench_pipeline
from visual_ar.evaluation.workload import DEFAULTS, Options, source
from visual_ar.method_options import parse_method
from visual_ar.tokens.kind import FLIPS, TABLE

if TYPE_CHECKING:
    from visual_ar.pipeline import VisualARPipeline

SUITE = (
    BASELINE,
    "jacobi-published",
    "jacobi:window=32,coupling=independent,rule=block",
    "jacobi:window=8",
    "jacobi:window=32",
    "jacobi:window=64",
    "jacobi:window=64,coupling=gumbel",
    "exact-match:window=64",
    "jacobi:window=32,rule=omega/omega=1.1",
    "jacobi:window=32,rule=omega/omega=1.5",
    "jacobi:window=32,rule=omega/omega=2",
    "jacobi:window=32,rule=grouped",
    "jacobi:window=32,rule=lantern",
    "jacobi:window=32,rule=lantern++",
    "jacobi:window=32,rule=typical",
    "tree:window=16,tree=4x2",
    "tree:window=32,tree=8x2",
    "tree:window=32,tree=8x2,rule=omega/omega=1.5",
    "tree:window=8,tree=32",
    "tree-spatial",
    "tree-adaptive",
)
"""Methods that every next-token model of codes can serve."""
OF_BITS = (
    BASELINE,
    "jacobi:window=8",
    "jacobi:window=32",
    "jacobi:window=64",
    "jacobi:window=64,coupling=gumbel",
    "exact-match:window=64",
    "jacobi:window=32,rule=bitwise",
)
"""Methods that every next-token model of bits or sub-codes can serve."""
BY_HAMMING_DISTANCE = (
    "jacobi:window=32,rule=omega/omega=1.5",
    "jacobi:window=32,rule=hamming-grouped",
    "jacobi:window=32,rule=hamming-lantern",
)
WITH_HEAD = (
    "draft-head:window=5",
    "draft-head:window=5,rule=block",
    "tree:window=5,tree=4x2,drafter=head",
)
WITH_DENOISING = ("denoising:window=32,steps=8", "denoising:window=32,steps=1")

Progress = Callable[[str, int, int], None]


class Asked(NamedTuple):
    """What the quality is measured on.

    Attributes:
        prompts: number of prompts of the training split, at least 2; one picture each.
        seed: of the choice of prompts and of the first picture; the others follow.
    """

    prompts: int = 100
    seed: int = 0


def suite(pipe: VisualARPipeline) -> tuple[str, ...]:
    """The methods of the chart that a pipeline can serve."""
    kind = pipe.model.tokens
    if TABLE not in kind.offers:
        near = BY_HAMMING_DISTANCE if FLIPS in kind.offers else ()
        return (*OF_BITS, *near)
    head = WITH_HEAD if pipe.draft_head is not None else ()
    denoising = WITH_DENOISING if "denoising" in pipe.model.capabilities else ()
    return (*SUITE, *head, *denoising)


def pareto(
    pipe: VisualARPipeline,
    name: str,
    dataset: Dataset,
    features: Features,
    subjects: Sequence[str],
    methods: Sequence[str] | None = None,
    options: Options = DEFAULTS,
    schedule: Schedule | None = None,
    asked: Asked | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Speed and quality of every method.

    Every method draws the same prompts with the same seeds. Sequential decoding draws them twice,
    with other seeds the second time: its distance from itself is what chance alone gives, and the
    distances of the others are to be read beside it.

    Args:
        pipe: a text-conditional pipeline.
        name: of the model, for the report.
        dataset: the captioned set that the pipeline was trained on.
        features: how pictures are compared.
        subjects: prompts of the speed measurement.
        methods: specifications, see `method_options.parse_method`; by default `suite` says which.
        options: of sampling.
        schedule: of the speed measurement.
        asked: of the quality measurement; by default what `Asked` says.
        progress: called as progress(what, done, total).

    Returns:
        the document of `speed.bench` with "quality" for every method, and "quality" as a whole.

    Raises:
        ValueError: as `bench_pipeline`; or the set has no names, or not that many prompts.
    """
    asked = asked or Asked()
    if not dataset.items:
        raise ValueError(f"dataset must have captions, {dataset.name} has none")
    if asked.prompts < 2:
        raise ValueError(f"prompts must be at least 2, got {asked.prompts}")
    training = dataset.indices("train")
    prompts = choose([dataset.prompts[index] for index in training], asked.prompts, asked.seed)
    groups = dict(zip(dataset.prompts, dataset.groups, strict=True))
    wanted = [groups[prompt] for prompt in prompts]
    document = bench_pipeline(
        pipe,
        name,
        subjects,
        options,
        methods or suite(pipe),
        schedule,
        None if progress is None else lambda done, total: progress("speed", done, total),
    )

    def drawn(method: str, seed: int, what: str) -> Tensor:
        decoding = parse_method(method, pipe.scheduler)
        return features.of_source(source(pipe, decoding, options), prompts, seed, what)

    reference = features.of_pictures(dataset.pictures)
    data = statistics(reference[training])
    again = statistics(drawn(BASELINE, asked.seed + asked.prompts, f"{BASELINE} again"))
    for method in document["methods"]:
        pictures = drawn(method["name"], asked.seed, method["name"])
        found = retrieve(pictures, wanted, reference, dataset.groups, TOP)
        own = statistics(pictures)
        method["quality"] = {
            f"hit_rate_top_{TOP}": found.hit_rate,
            "distance_to_sequential": frechet_distance(*own, *again),
            "distance_to_data": frechet_distance(*own, *data),
        }
    document["quality"] = {
        "features": NETWORK,
        "distance": DISTANCE,
        "sequential_reference": "sequential decoding with other seeds",
        "data_reference": "train split",
        **asked._asdict(),
    }
    return document
