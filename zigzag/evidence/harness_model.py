"""A model under a plan as lm-eval's model: it scores by `likelihoods` and answers by `generate`.

Needs lm-eval; imported by `harness` alone, when it is asked for.
"""

from dataclasses import fields
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from zigzag.chat.thinking import chat_text, thinking_token_ids
from zigzag.evidence.answering import Asked, answers, check_lengths
from zigzag.measuring.likelihood import likelihoods
from zigzag.models.decoder import Decoder
from zigzag.plans.heads import Plan
from zigzag.reference.checks import check_count
from zigzag.reference.errors import ArgumentError, ModelError
from zigzag.running.interception import attachment_of


class PlannedModel(TemplateLM):
    """What lm-eval asks of a model.

    chat: whether prompts come from the chat template, which writes special tokens itself
    The other arguments are those of `harness.evaluate`.
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Any,
        *,
        plan: Plan | None = None,
        batch_size: int = 1,
        seed: int = 0,
        chat: bool = False,
        thinking: bool | None = None,
        max_length: int | None = None,
    ) -> None:
        super().__init__()
        attached = attachment_of(model)
        self.model, self.tokenizer = model, tokenizer
        self.plan = plan if plan is not None or attached is None else attached.plan
        self.batch_size, self.seed = check_count("eval", "batch_size", batch_size), check_count("eval", "seed", seed, 0)
        self.chat, self.thinking = chat, thinking
        config = model.config.get_text_config(decoder=True)
        self.max_length = check_count("eval", "max_length", max_length or config.max_position_embeddings)
        if thinking:
            thinking_token_ids(tokenizer)
        if chat:
            self.apply_chat_template([{"role": "user", "content": "?"}])

    @property
    def eot_token_id(self) -> int:
        return self._known("eos_token_id")

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has nothing before it, as in lm-eval's own models."""
        return self._known("eos_token_id" if self.tokenizer.bos_token_id is None else "bos_token_id")

    def _known(self, name: str) -> int:
        token: int | None = getattr(self.tokenizer, name)
        if token is None:
            raise ModelError(f"eval: the tokenizer has no {name}, which stands before a text without context; set one")
        return token

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt, all of it and in the mode that was asked for, or ModelError."""
        return chat_text(self.tokenizer, chat_history, thinking=self.thinking, continues=not add_generation_prompt)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Tokens; special ones are added as the tokenizer does, but where the text has them: in a chat, or first."""
        if add_special_tokens is None:
            bos = self.tokenizer.bos_token
            add_special_tokens = not self.chat and not (bos is not None and string.startswith(bos))
        return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens))

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        pairs = [(context, continuation) for _, context, continuation in requests]
        for context, continuation in pairs:
            if len(context) + len(continuation) - 1 > self.max_length:
                raise ArgumentError(
                    f"eval: a context of {len(context)} tokens and a continuation of {len(continuation)} do not fit "
                    f"into the {self.max_length} of the model; give fewer --num-fewshot, or, where the model can do "
                    f"more, --max-length"
                )
        found = likelihoods(self.model, pairs, plan=self.plan, batch_size=self.batch_size)
        return [(one.log_prob, one.is_greedy) for one in found]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Of whole texts, in windows of `max_length` tokens that lm-eval cuts: each token is predicted once."""
        windows: list[tuple[Any, list[int], list[int]]] = []
        counts: list[int] = []
        for (text,) in (request.args for request in requests):
            cut = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
            new = [(None, *make_disjoint_window(pair)) for pair in cut]
            windows += new
            counts.append(len(new))
        found = iter(self._loglikelihood_tokens(windows))
        return [sum(next(found)[0] for _ in range(count)) for count in counts]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        prompts = [self.tok_encode(request.args[0]) for request in requests]
        asked = [Asked.of(request.args[1]) for request in requests]
        check_lengths(prompts, asked, self.max_length)
        return answers(
            self.model,
            self.tokenizer,
            prompts,
            asked,
            plan=self.plan,
            batch_size=self.batch_size,
            seed=self.seed,
            thinking=self.thinking,
        )

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes beside the results."""
        name = str(getattr(self.model.config, "_name_or_path", "")) or type(self.model).__name__
        parameters = sum(weight.numel() for weight in self.model.parameters())
        return {
            "model": name,
            "model_num_parameters": parameters,
            "model_dtype": str(self.model.dtype),
            "device": str(self.model.device),
            "max_length": self.max_length,
            "plan": None if self.plan is None else _as_words(self.plan),
        }


def _as_words(plan: Plan) -> dict[str, Any]:
    """What makes up a plan."""
    known = {one.name: getattr(plan, one.name) for one in fields(plan) if one.init}
    return {"map": plan.map()} | known
