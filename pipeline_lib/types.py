"""The glossary: every value that passes between the rooms of the pipeline.

Dimension letters, used in every docstring of the project:

    B  rows of a batch          T  tokens of a sequence      V  entries of the vocabulary
    N  nodes of a tree          A  children of one node      P  tokens of a prompt
    S  steps of a path          K  rollouts of one problem

Arrays live in frozen dataclasses; what is written as JSON is a frozen pydantic model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

Int32Array = NDArray[np.int32]
Int64Array = NDArray[np.int64]
Int8Array = NDArray[np.int8]
Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]

NO_PARENT = -1
NO_TOKEN = -1
STOPPED = -2  # in place of the token that ended a rollout: a stop string did
ROOT = 0


class Grade(StrEnum):
    """The verdict on one final answer; ``UNPARSED`` and ``TIMEOUT`` are never folded into ``WRONG``."""

    CORRECT = "correct"
    WRONG = "wrong"
    UNPARSED = "unparsed"
    TIMEOUT = "timeout"


class Outcome(IntEnum):
    """How the path that ends in a node ended; ``OPEN`` for every node that does not end a rollout."""

    OPEN = 0
    CORRECT = 1
    WRONG = 2
    UNPARSED = 3
    TRUNCATED = 4


@dataclass(frozen=True, slots=True)
class Problem:
    """One question with its gold answer.

    Args:
        problem_id: unique over all sets and splits, ``set/split/00017``; a set is called as its dataset unless a test
            set has a name of its own.
        question: what the policy is asked, without any prompt around it.
        answer: the gold final answer alone, never a worked solution.
        dataset: the dataset's name; prompt and answer format depend on it.
        metadata: columns that some reports group by (``level``, ``subject``); strings only.
    """

    problem_id: str
    question: str
    answer: str
    dataset: str
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def set_name(self) -> str:
        """How reports call the set that it stands in."""
        return self.problem_id.partition("/")[0]


@dataclass(frozen=True, slots=True)
class SearchTree:
    """One problem's tree as a struct of arrays; a parent always stands before its children.

    A node is the problem plus the steps on its path; an edge is one sampled step. The root has no step. ``visits`` is
    the number of rollouts through a node, ``value_sums`` how many of them were right, or the sum of what they earned.

    Args:
        problem_id: id of the problem whose tree this is.
        policy_id: id of the policy that sampled it.
        seed: the tree's own seed; simulation i drew from ``derive_seed(seed, i)``.
        prompt_token_ids: `[P]` int32, exactly as sent to the policy.
        parents: `[N]` int32, -1 for the root.
        steps: N texts, delimiter included; "" for the root.
        token_ids: N int32 arrays, the very ids that were sampled; empty for the root.
        visits: `[N]` int32, rollouts through each node.
        value_sums: `[N]` float64, sum of rewards in [0, visits].
        outcomes: `[N]` int8, see `Outcome`; OPEN for inner nodes.
        depths: `[N]` int32, 0 for the root.
        tokens_generated: tokens that the policy sampled for this tree.
        tokens_kept: of those, the ones in a step whose rollout was backed up (merged ones count).
        num_timeouts: rollouts whose grading passed its deadline; their outcome is UNPARSED.
        end_token_ids: `[N]` int32, the token that ended each finished rollout, or `STOPPED`; -1 where it is not known.
        cutoffs: `[N]` int8, `config.Cutoff` of the rollouts that end in a node; the first one's where several merged.
        ignored: rollouts left out, no visit and no reward, since a limit cut them off: one number per `Cutoff`, or ().
        surprisals: `[N]` float32, mean of -log p over a step's tokens, in nats; -1 where not known; `[0]`: not asked.
    """

    problem_id: str
    policy_id: str
    seed: int
    prompt_token_ids: Int32Array
    parents: Int32Array
    steps: tuple[str, ...]
    token_ids: tuple[Int32Array, ...]
    visits: Int32Array
    value_sums: Float64Array
    outcomes: Int8Array
    depths: Int32Array
    tokens_generated: int = 0
    tokens_kept: int = 0
    num_timeouts: int = 0
    end_token_ids: Int32Array = field(default_factory=lambda: np.zeros(0, dtype=np.int32))
    cutoffs: Int8Array = field(default_factory=lambda: np.zeros(0, dtype=np.int8))
    ignored: tuple[int, ...] = ()
    surprisals: Float32Array = field(default_factory=lambda: np.zeros(0, dtype=np.float32))

    def __post_init__(self) -> None:  # trees of version 0.1.0 have neither
        if len(self.end_token_ids) == 0:
            object.__setattr__(self, "end_token_ids", np.full(self.num_nodes, NO_TOKEN, dtype=np.int32))
        if len(self.cutoffs) == 0:
            object.__setattr__(self, "cutoffs", np.zeros(self.num_nodes, dtype=np.int8))

    @property
    def num_nodes(self) -> int:
        return len(self.parents)

    @property
    def num_rollouts(self) -> int:
        """Simulations backed up: the visits of the root."""
        return int(self.visits[ROOT])

    @property
    def num_simulations(self) -> int:
        """Simulations that its budget paid for: those backed up, and those ignored."""
        return self.num_rollouts + sum(self.ignored)

    @property
    def values(self) -> Float64Array:
        """`[N]` mean reward below each node, ``W / N``; 0 where never visited."""
        values: Float64Array = self.value_sums / np.maximum(self.visits, 1)
        return values

    @property
    def is_informative(self) -> bool:
        """True when at least one rollout was right and one was not, or a verifier's numbers differ (rounding aside)."""
        return bool(0 < self.value_sums[ROOT] < self.visits[ROOT] and np.ptp(self.values[self.visits > 0]) > 1e-9)

    def end_token_id(self, node: int) -> int | None:
        """The token that ended the rollout at `node`, or `STOPPED`; None where none did or it is not known."""
        return None if (found := int(self.end_token_ids[node])) == NO_TOKEN else found

    def sibling_groups(self) -> dict[int, Int32Array]:
        """Children of every inner node: parent index to `[A]` int32 child indices, ascending."""
        order = np.argsort(self.parents, kind="stable")
        heads, starts = np.unique(self.parents[order], return_index=True)
        groups = np.split(order.astype(np.int32), starts[1:])
        return {int(head): group for head, group in zip(heads, groups, strict=True) if head != NO_PARENT}

    def path(self, node: int) -> list[int]:
        """Node indices from the first step to `node`; the root is left out."""
        indices: list[int] = []
        while node != ROOT:
            indices.append(node)
            node = int(self.parents[node])
        return indices[::-1]


@dataclass(frozen=True, slots=True)
class TrainingExample:
    """A tree with what the objectives need of it.

    Shapes: N nodes, R pairs.

    Args:
        tree: the searched tree, for its tokens and prefixes.
        weights: `[N]` float64; the loss multiplies node i's log-likelihood by ``weights[i]``; 0 means not scored.
        pairs: `[R, 2]` int32, (preferred node, dispreferred node), siblings; only ``step-dpo`` reads them.
    """

    tree: SearchTree
    weights: Float64Array
    pairs: Int32Array = field(default_factory=lambda: np.zeros((0, 2), dtype=np.int32))


class Record(BaseModel):
    """Base of everything written as JSON: immutable; what a later version wrote besides is left out when it is read."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Ref(Record):
    """What crosses a task border instead of the value: where it is, and how to tell it is whole."""

    uri: str = Field(description="Folder of the stage's entry in the store.")
    sha256: str = Field(description="SHA-256 over the entry's manifest.")
    num_rows: int = Field(ge=0, description="Rows, trees, updates or problems, as the stage counts.")
    schema_version: int = Field(ge=1, description="Version of the files' layout.")


class PolicyRef(Record):
    """A policy by reference: base weights and, from iteration 1 on, an adapter."""

    policy_id: str = Field(description="Hash of base revision and adapter files.")
    base_model: str = Field(description="Model folder or hub name.")
    revision: str | None = Field(default=None, description="Hub revision; None for a folder.")
    adapter_uri: str | None = Field(default=None, description="Folder of adapter or full weights; None for the base.")
    iteration: int = Field(ge=0, description="0 for the base.")


class EvalReport(Record):
    """Greedy accuracy of one policy on one dataset split, with what it takes to judge it."""

    dataset: str
    split: str = Field(description="`validation` feeds the gate; `test` is only reported.")
    policy_id: str
    num_problems: int
    num_correct: int
    num_unparsed: int
    num_truncated: int
    num_timeouts: int = 0
    num_ignored: int = Field(
        default=0, json_schema_extra={"before": 0}, description="Truncated answers that are in no other count."
    )
    cutoffs: dict[str, int] = Field(
        default_factory=dict, json_schema_extra={"before": {}}, description="Truncated answers by limit: `tokens`, …"
    )
    accuracy: float = Field(description="num_correct / (num_problems - num_ignored), greedy, in [0, 1].")
    interval: tuple[float, float] = Field(description="95 % Wilson interval of the accuracy.")
    sampled: dict[str, float] = Field(
        default_factory=dict,
        description="At temperature above 0, on the first problems: `avg@n`, the mean accuracy of n samples, also "
        "called `mean`; `maj@n`; `pass@k`.",
    )
    sampled_interval: tuple[float, float] | None = Field(
        default=None,
        json_schema_extra={"before": None},
        description="95 % interval of `avg@n` over problems; None where nothing was sampled.",
    )
    predictions: Ref | None = None
    problems: Ref | None = Field(default=None, description="The problem set, by reference.")
    yardstick: str = Field(
        default="",
        description="Hash of problems, grading and answer length; accuracies of equal ones can be compared.",
    )

    @property
    def num_wrong(self) -> int:
        return self.num_problems - self.num_ignored - self.num_correct - self.num_unparsed - self.num_timeouts


class PairedTest(Record):
    """Two policies on the same problems: exact McNemar test and the paired difference."""

    dataset: str
    split: str
    against: str = Field(description="`base`, `previous`, `best` so far, or `iteration 1` and so on.")
    against_iteration: int | None = Field(
        default=None,
        json_schema_extra={"before": None},
        description="Index of the earlier iteration; None in records of version 0.1.0, which knew the first two alone.",
    )
    num_fixed: int = Field(description="Wrong before, right now.")
    num_broken: int = Field(description="Right before, wrong now.")
    difference: float = Field(description="Accuracy now minus accuracy before, in [-1, 1].")
    interval: tuple[float, float] = Field(description="95 % interval of the paired difference.")
    p_value: float = Field(description="Exact two-sided McNemar.")


class Histogram(Record):
    """Counts of scores between edges."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


class Remedy(Record):
    """What the audit's remedy did: it searches the uninformative problems on, with twice the budget."""

    num_problems: int = Field(description="Problems that were searched again.")
    num_rollouts: int = Field(description="Rollouts that this added.")
    num_informative: int = Field(description="Of these problems, those that became informative.")


class AuditReport(Record):
    """Whether an iteration's scores carry signal; made before any training."""

    num_problems: int
    num_informative: int
    num_all_correct: int
    num_all_wrong: int
    informative_share: float
    num_steps: int = Field(description="Nodes without the roots.")
    num_scored_steps: int = Field(description="Nodes whose score is not 0.")
    variance: float = Field(description="Variance of the scores over all steps.")
    variance_by_depth: dict[int, float]
    variance_by_visits: dict[str, float] = Field(description="Keyed by visit bucket: `1`, `2-3`, `4-7`, `8+`.")
    positive_mass: float = Field(description="Sum of positive scores.")
    negative_mass: float = Field(description="Sum of negative scores, at most 0.")
    unparsed_share: float = Field(description="Unparsed rollouts over all rollouts.")
    truncated_share: float
    rollouts: dict[str, int] = Field(
        default_factory=dict,
        description="Rollouts by how they ended: `correct`, `wrong`, `unparsed`, `timeout`, `truncated`.",
    )
    cutoffs: dict[str, int] = Field(
        default_factory=dict,
        json_schema_extra={"before": {}},
        description="Rollouts that a limit cut off, by limit: `step`, `depth`, `tokens`, `context`; graded ones too.",
    )
    histogram: Histogram
    remedied: bool = Field(description="The uninformative problems were searched again with twice the simulations.")
    remedy: Remedy | None = Field(
        default=None,
        json_schema_extra={"before": None},
        description="What searching them again did; None where it was not done, and in records of version 0.1.0.",
    )
    passed: bool
    reason: str = Field(description="Why it passed or stopped, one sentence.")
    advice: str = Field(description="What to change when it stopped; empty when it passed.")
    oracle: dict[str, float] = Field(
        default_factory=dict,
        description="Tiny world only: AUC of low scores finding wrong steps: `auc`, `auc/depth/2`, `auc/visits/4-7`, …",
    )


class IterationRecord(Record):
    """All that happened in one iteration; the gate is a pure function of a list of these."""

    index: int = Field(ge=0, description="0 is the base.")
    policy: PolicyRef
    parent: int | None = Field(
        default=None,
        json_schema_extra={"before": None},
        description="Index of the iteration whose policy it searched with and trained from; None for the base, and in "
        "records of version 0.1.0, where it is always the one before.",
    )
    evaluations: tuple[EvalReport, ...] = ()
    paired: tuple[PairedTest, ...] = ()
    audit: AuditReport | None = None
    search: dict[str, float] = Field(default_factory=dict)
    train: dict[str, float] = Field(default_factory=dict)
    evaluate: dict[str, float] = Field(default_factory=dict, json_schema_extra={"before": {}})
    seconds: dict[str, float] = Field(default_factory=dict)
    refs: dict[str, Ref] = Field(default_factory=dict)
    tracking_run: str | None = None

    def evaluation(self, dataset: str, split: str) -> EvalReport | None:
        """The report for `dataset` and `split`, or None when it was not evaluated."""
        return next((e for e in self.evaluations if (e.dataset, e.split) == (dataset, split)), None)


class GateDecision(Record):
    """What the early-stopping gate says after an iteration."""

    proceed: bool
    champion: int = Field(ge=0, description="Index of the best iteration so far by validation accuracy.")
    reason: str


class GateTrial(Record):
    """What the gate would have done with these records under another minimum gain and patience."""

    min_gain: float = Field(ge=0, description="In [0, 1], as `gate.min_gain`.")
    patience: int = Field(ge=1)
    require_interval: bool
    stopped_after: int | None = Field(description="Index of the last iteration it would have run; None: it goes on.")
    champion: int = Field(ge=0, description="Which iteration it would have taken at that point.")
    to_beat: dict[int, float] = Field(description="By iteration: the validation accuracy above which it had gained.")


class Promotion(Record):
    """What became of a run's best adapter in the registry, where `champion` is what deployments load."""

    promoted: bool = Field(description="Whether the alias moved to it.")
    version: str | None = Field(default=None, description="The adapter's version; None when the base stayed best.")
    previous: str | None = Field(default=None, description="The champion before; None when there was none.")
    reason: str


class RunResult(Record):
    """What one pipeline run hands back: its records, and why it ended."""

    records: tuple[IterationRecord, ...] = Field(description="Iteration 0, the base, first.")
    decision: GateDecision = Field(description="The gate's last word; its champion is the run's.")
    stopped_because: str = Field(description="Why there was no further iteration, one sentence.")
    wall_s: float = Field(ge=0, description="Seconds from the flow's start to its end.")
    tracking_run: str | None = Field(default=None, description="Id of the run's parent in MLflow; None when untracked.")
    promotion: Promotion | None = Field(default=None, description="None when untracked.")


JsonDict = dict[str, Any]
