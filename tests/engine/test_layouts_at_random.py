"""Random shapes, sizes, strategies and layouts of groups, each against one process."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mics_core.planner.strategy import Strategy
from tests.engine.test_strategies import ADAMW, STRATEGIES, check
from tests.engine.worker_pool import WorkerPool

MOST_WORKERS = 12
SETTINGS = settings(
    max_examples=5,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@st.composite
def layouts_on_one_node(draw: st.DrawFn) -> tuple[int, int, int]:
    """Groups, workers of each (p) and of a node (k), p at most k."""
    size = draw(st.integers(1, 4))
    return draw(st.integers(1, MOST_WORKERS // size)), size, size * draw(st.integers(1, 2))


@st.composite
def layouts_over_nodes(draw: st.DrawFn) -> tuple[int, int, int]:
    """Groups, workers of each (p) and of a node (k), p a multiple of k."""
    num_groups = draw(st.sampled_from([2, 3, 1]))
    most = MOST_WORKERS // num_groups
    workers_per_node = draw(st.sampled_from([k for k in (2, 3, 1, 4, 5, 6) if 2 * k <= most]))
    num_nodes = draw(st.integers(2, most // workers_per_node))
    return num_groups, num_nodes * workers_per_node, workers_per_node


def strategies_of(layout: tuple[int, int, int]) -> st.SearchStrategy[Strategy]:
    """Stages are for groups over several nodes of several workers."""
    _, size, workers_per_node = layout
    names = list(STRATEGIES) if size > workers_per_node > 1 else ["flat", "never"]
    return st.sampled_from([STRATEGIES[name] for name in names])


@SETTINGS
@given(data=st.data())
def test_any_layout_on_one_node_trains_as_one_process(
    pool: WorkerPool, text: str, data: st.DataObject
) -> None:
    check_any(pool, text, data, data.draw(layouts_on_one_node()))


@settings(SETTINGS, max_examples=10)
@given(data=st.data())
def test_any_layout_over_nodes_trains_as_one_process(
    pool: WorkerPool, text: str, data: st.DataObject
) -> None:
    check_any(pool, text, data, data.draw(layouts_over_nodes()))


def check_any(
    pool: WorkerPool, text: str, data: st.DataObject, layout: tuple[int, int, int]
) -> None:
    """Draw a model, a strategy and a batch, and train them on a layout."""
    num_groups, size, workers_per_node = layout
    num_heads = data.draw(st.integers(1, 3))
    family = data.draw(st.sampled_from(["gpt2", "llama", "bert", "roberta"]))
    check(
        pool,
        text,
        (size, workers_per_node),
        data.draw(strategies_of(layout)),
        num_groups=num_groups,
        num_micro_batches=num_groups + data.draw(st.integers(0, 3)),
        tolerance=1e-10,
        model__family=family,
        model__num_heads=num_heads,
        # Few rows, so that some workers hold little or nothing of a parameter.
        model__hidden_size=num_heads * data.draw(st.sampled_from([2, 6, 10])),
        model__num_layers=data.draw(st.integers(1, 3)),
        model__tie_embeddings=data.draw(st.booleans()),
        engine__bucket_mib=data.draw(st.sampled_from([1e-6, 1e-3, 4.0])),
        training__activation_checkpointing=data.draw(st.booleans()),
        training__sequence_length=data.draw(st.sampled_from([5, 8])),
        training__steps=2,
        training__precision="fp64",
        training__optimizer=ADAMW,
    )
