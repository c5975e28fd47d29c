"""A finished (or stopped) run, loaded: its base, its adapter, its template and its system prompt, ready to be asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from strop.data.tokenizer import Tokenizer
from strop.errors import InputError
from strop.evaluate.ask import AnswerText, Question, answer_questions, question_of_text
from strop.model.lora import Adapter, read_adapter
from strop.model.paths import AnyDecoder, AnyEngine, load_any, open_tensors
from strop.model.source import Note, model_folder
from strop.plan.apply import make_engine, use_processor
from strop.plan.choose import default_plan
from strop.plan.machine import probe
from strop.plan.plan import CHOICES, Plan
from strop.recipe import Recipe, from_yaml
from strop.run.checkpoint import newest_checkpoint
from strop.run.folder import RunFolder, open_run


@dataclass(frozen=True, slots=True)
class TunedModel:
    """What a run made, in memory.

    Attributes:
        run: its folder.
        recipe: its recipe.
        plan: how this machine computes it.
        decoder: the base.
        adapter: what was learned.
        tokenizer: tokenizer and template.
    """

    run: RunFolder
    recipe: Recipe
    plan: Plan
    decoder: AnyDecoder
    adapter: Adapter
    tokenizer: Tokenizer

    def measure(self) -> AnyEngine:
        """What computes losses: forward passes alone, which keep nothing, so that memory is that of one layer."""
        everything = replace(self.plan, recompute_layers=self.decoder.spec.layers, recompute_elementwise=0)
        work = everything.work(
            tokens=self.plan.pack_tokens,
            learned=self.plan.pack_tokens,
            targets=self.adapter.targets,
            rank=self.adapter.rank,
            dropout=0.0,
        )
        return make_engine(self.decoder, self.plan, work)

    @property
    def thinking(self) -> bool:
        """Whether the answers that it learned reason first, so that it is asked in that way."""
        return self.recipe.data.thinking == "keep"

    def question(self, text: str) -> Question:
        """A question from its text, as the run's were asked."""
        return question_of_text(text, self.recipe.data.system, thinking=self.thinking)

    def ask(
        self, questions: Sequence[str], *, tuned: bool = True, max_tokens: int = 256, temperature: float = 0.0
    ) -> list[AnswerText]:
        """Answers questions with the prompt that was trained.

        Args:
            questions: texts of single questions.
            tuned: with the adapter, or the base alone.
            max_tokens: longest answer.
            temperature: 0 takes the likeliest token.
        """
        asked = [self.question(text) for text in questions]
        return self.answer(asked, tuned=tuned, max_tokens=max_tokens, temperature=temperature)

    def answer(
        self, questions: Sequence[Question], *, tuned: bool = True, max_tokens: int = 256, temperature: float = 0.0
    ) -> list[AnswerText]:
        """The same for questions with a history."""
        adapter = self.adapter if tuned else None
        return answer_questions(
            self.decoder,
            adapter,
            self.tokenizer,
            questions,
            max_tokens,
            temperature=temperature,
            seed=self.recipe.train.seed,
        )


def load_tuned(path: str | Path, note: Note | None = None) -> TunedModel:
    """Loads a run: its final adapter, or that of its newest whole checkpoint where it has not ended.

    Raises:
        InputError: no run, none that got as far as a checkpoint, or one whose chat template is another by now.
        ModelError: the base is gone or damaged.
    """
    run = open_run(Path(path))
    recipe = from_yaml(run.read_recipe(), str(run.recipe)).recipe
    adapter_folder = run.adapter
    if not (adapter_folder / "adapter_config.json").is_file():
        checkpoint, _ = newest_checkpoint(run.checkpoints)
        if checkpoint is None:
            raise InputError(
                f"{run.path} has no adapter yet",
                expected="a finished run, or one with a whole checkpoint",
                found="neither adapter/ nor a checkpoint that verifies",
                do=f"continue it first: strop resume {run.path}",
            )
        adapter_folder = checkpoint.path
    folder = model_folder(recipe.model, note)
    tokenizer = Tokenizer.from_folder(folder)
    if tokenizer.template.sha256 != run.fact("manifest.json", "template", "sha256"):
        raise InputError(
            f"the template of run {run.path} has changed since it was trained",
            expected="the chat template that the run was trained with",
            found=f"another one: {tokenizer.template.name}",
            do="put the template back: a tuned model is asked with the prompt that it learned",
        )
    decoder, plan = load_base(folder)
    tuned_in = run.fact("plan.json", "dtype")
    if note is not None and tuned_in in CHOICES["dtype"] and tuned_in != plan.dtype:
        note(f"computing in {plan.dtype}; the run was tuned in {tuned_in}, so that losses differ by its rounding")
    return TunedModel(run, recipe, plan, decoder, read_adapter(adapter_folder, decoder.spec, decoder.device), tokenizer)


def load_base(folder: Path) -> tuple[AnyDecoder, Plan]:
    """A base for answering and evaluating, computed as this machine does best."""
    plan = default_plan(open_tensors(folder).spec, probe())
    use_processor(plan)
    decoder = load_any(folder, plan.device, getattr(torch, plan.dtype), head=plan.head, embedding=plan.embedding)
    decoder.loss_chunk = plan.loss_chunk
    decoder.keep_dense(plan.dense_layers)
    return decoder, plan
