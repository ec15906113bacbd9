"""Random shapes, sizes, strategies and layouts of groups, each against one process."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mics_core.planner.strategy import Strategy
from tests.engine.test_strategies import ADAMW, STRATEGIES, check
from tests.engine.worker_pool import WorkerPool

# Groups, workers of each (p) and of a node (k), on at most twelve workers.
LAYOUTS = [
    *((1, 2, 2), (3, 2, 2), (5, 1, 2), (7, 1, 1), (2, 3, 3), (4, 3, 3), (3, 4, 4)),
    *((3, 4, 2), (2, 6, 3), (2, 6, 2), (1, 12, 4), (1, 12, 3), (1, 9, 3)),
]
SETTINGS = settings(
    max_examples=10,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def strategies_of(layout: tuple[int, int, int]) -> st.SearchStrategy[Strategy]:
    """Stages are for groups over several nodes."""
    _, size, workers_per_node = layout
    names = list(STRATEGIES) if size > workers_per_node else ["flat", "never"]
    return st.sampled_from([STRATEGIES[name] for name in names])


@SETTINGS
@given(data=st.data())
def test_any_layout_trains_as_one_process(pool: WorkerPool, text: str, data: st.DataObject) -> None:
    layout = data.draw(st.sampled_from(LAYOUTS))
    num_groups, size, workers_per_node = layout
    num_heads = data.draw(st.integers(1, 3))
    check(
        pool,
        text,
        (size, workers_per_node),
        data.draw(strategies_of(layout)),
        num_groups=num_groups,
        num_micro_batches=num_groups + data.draw(st.integers(0, 3)),
        tolerance=1e-10,
        model__num_heads=num_heads,
        # Few rows, so that some workers hold little or nothing of a parameter.
        model__hidden_size=num_heads * data.draw(st.sampled_from([2, 6, 10])),
        model__num_layers=data.draw(st.integers(1, 3)),
        model__tie_embeddings=data.draw(st.booleans()),
        engine__bucket_mib=data.draw(st.sampled_from([1e-6, 1e-3, 4.0])),
        training__sequence_length=data.draw(st.sampled_from([5, 8])),
        training__steps=2,
        training__precision="fp64",
        training__optimizer=ADAMW,
    )
