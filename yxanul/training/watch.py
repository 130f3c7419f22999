"""Precision over a run: when FP8 begins, whether what runs is what was planned, and which layers must leave it.

A look is a forward and backward over a few sequences of the step's own data beside training; its gradient is thrown
away, so a run with looks has the same weights as one without.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace

from torch import nn

from yxanul.config import Fallback, PrecisionConfig, Recipe
from yxanul.curriculum import Step
from yxanul.errors import UserError
from yxanul.precision.observe import Observation, Statistics, differences, observe
from yxanul.precision.plan import FP8, PlannedProduct, base_format, fp8_layers
from yxanul.precision.products import Fp8Layer
from yxanul.precision.support import Choice
from yxanul.tracking import EventRow, PrecisionRow

LOOK_TOKENS = 2048


@dataclass
class Watch:
    """The precision of a model on its way through a plan.

    Attributes:
        planned: every product of a step.
        fp8: what makes products in FP8, None if nothing does.
    """

    model: nn.Module
    config: PrecisionConfig
    planned: Sequence[PlannedProduct]
    fp8: Choice | None
    _checked: set[bool] = field(default_factory=set, init=False)
    _layers: dict[str, Fp8Layer] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._layers = fp8_layers(self.model)

    def begin(self, index: int) -> None:
        """Before step `index` (0-based): from `precision.start_step` on FP8 is active; weights have changed."""
        for layer in self._layers.values():
            layer.active = index >= self.config.start_step
            layer.first_micro_batch = None

    def micro_batch(self, index: int) -> None:
        """Before micro-batch `index` of a step: after the first Transformer Engine need not quantize weights again."""
        for layer in self._layers.values():
            layer.first_micro_batch = index == 0

    def phases(self, first: int) -> list[int]:
        """The steps from `first` on at which what runs changes: the first itself, and the beginning of FP8."""
        begins = self.config.start_step
        return [first, begins] if self.fp8 is not None and first < begins else [first]

    def leave_fp8(self, names: Sequence[str]) -> None:
        """Have these layers run in the activations' dtype from here on."""
        base = base_format(self.planned)
        for name in set(names) & self._layers.keys():
            self._layers[name].use(frozenset())
        self.planned = [
            replace(each, format=base, reason="left FP8 in training") if each.name in names else each
            for each in self.planned
        ]

    def due(self, index: int) -> bool:
        """Whether a look is due: at a start, when FP8 begins, and every `precision.watch_every` steps of it.

        Never with delayed scaling, whose history a look would move.
        """
        if self.fp8 is not None and self.fp8.recipe is Recipe.delayed:
            return False
        return self._active(index) not in self._checked or self._scheduled(index)

    def _active(self, index: int) -> bool:
        return self.fp8 is not None and index >= self.config.start_step

    def _scheduled(self, index: int) -> bool:
        every = self.config.watch_every
        return self._active(index) and every is not None and index % every == 0

    def look(
        self, step: Step, forward_backward: Callable[[Step], object]
    ) -> tuple[list[EventRow | PrecisionRow], list[str]]:
        """Watch a few sequences of a step.

        Args:
            forward_backward: of the step's first micro-batch.

        Returns:
            Rows for the record, and the names of layers that left FP8 for it.

        Raises:
            UserError: what ran is not what was planned, and precision.fallback=error.
        """
        few = replace(step, micro_batches=(min(step.micro_batches[0], max(1, LOOK_TOKENS // step.seq_len)),))
        tokens = few.micro_batches[0] * few.seq_len
        seen = observe(self.model, lambda: forward_backward(few), tokens, self.fp8)
        self.model.zero_grad()
        rows: list[EventRow | PrecisionRow] = []
        number = step.index + 1
        if self._active(step.index) not in self._checked:
            self._checked.add(self._active(step.index))
            rows += [EventRow(kind="event", step=number, message=line) for line in self._compare(step.index, seen)]
        if not self._scheduled(step.index):
            return rows, []
        rows.append(_row(number, seen))
        left = {name: why for name, of_layer in seen.layers.items() if (why := self._beyond_bounds(of_layer))}
        self.leave_fp8(list(left))
        rows += [EventRow(kind="event", step=number, message=f"{name} leaves fp8: {why}") for name, why in left.items()]
        return rows, list(left)

    def _compare(self, index: int, seen: Observation) -> list[str]:
        """In a line what FP8 ran, or what is not as planned; a run without FP8 that is as planned is silent."""
        base = base_format(self.planned)
        planned = self.planned if self._active(index) else [replace(each, format=base) for each in self.planned]
        found = differences(planned, seen, self.fp8)
        if found and self.config.fallback is Fallback.error:
            raise UserError(f"precision.fallback=error: {found[0]}")
        if found:
            return [f"precision is NOT as planned: {'; '.join(found)}"]
        if self.fp8 is None:
            return []
        formats = [each.format for each in planned if each.in_layers]
        return [
            f"precision as planned: {formats.count(FP8)} of {len(formats)} products in the layers ran in {self.fp8}"
        ]

    def _beyond_bounds(self, of_layer: dict[str, Statistics]) -> str | None:
        for operand, found in of_layer.items():
            if found.saturated > self.config.max_saturation:
                return f"{found.saturated:.1%} of its {operand} is saturated (precision.max_saturation)"
            if found.error > self.config.max_error:
                return f"its {operand} is quantized with an error of {found.error:.1%} (precision.max_error)"
        return None


def _row(step: int, seen: Observation) -> PrecisionRow:
    figures = {
        f"{name}/{operand}/{figure}": value
        for name, of_layer in seen.layers.items()
        for operand, found in of_layer.items()
        for figure, value in asdict(found).items()
    }
    return PrecisionRow(kind="precision", step=step, **figures)
