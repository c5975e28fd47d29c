"""A config.json whose keys are all accounted for: each is read by its family, known not to matter, or refused.

    hidden_size        read by the family                       → the spec
    initializer_range  in `HARMLESS`: how training began        → passed over
    use_mup: true      nobody has read it, and it is set        → refused by name

So a model is never run as something that it is not. A key that is null, false or empty switches nothing on and is
passed over as well.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from strop.errors import ModelError

Config = dict[str, Any]

# fmt: off
HARMLESS = frozenset(
    (
        "architectures", "auto_map", "model_type", "name_or_path", "transformers_version", "torch_dtype", "dtype",
        "use_cache", "tokenizer_class", "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id",
        "sep_token_id", "cls_token_id", "mask_token_id", "decoder_start_token_id", "initializer_range",
        "initializer_factor", "attention_dropout", "attention_probs_dropout_prob", "hidden_dropout",
        "hidden_dropout_prob", "resid_pdrop", "embd_pdrop", "attn_pdrop", "residual_dropout", "embedding_dropout",
        "attn_dropout_prob", "emb_dropout_prob", "gradient_checkpointing", "pretraining_tp", "attn_implementation",
        "cache_implementation", "output_attentions", "output_hidden_states", "output_past", "return_dict",
        "return_dict_in_generate", "output_scores", "is_decoder", "chunk_size_feed_forward", "task_specific_params",
        "problem_type", "id2label", "label2id", "finetuning_task", "max_length", "min_length", "temperature", "top_k",
        "top_p", "typical_p", "num_beams", "num_beam_groups", "num_return_sequences", "do_sample", "early_stopping",
        "diversity_penalty", "length_penalty", "repetition_penalty", "no_repeat_ngram_size",
        "encoder_no_repeat_ngram_size", "max_new_tokens", "use_bfloat16", "torchscript", "tf_legacy_loss",
        "pruned_heads", "bad_words_ids", "prefix", "suffix", "unsloth_version", "unsloth_fixed", "unsloth_optimized",
        "transformers.js_config", "is_llama_config", "model_max_length", "license", "mlp_dropout",
        "classifier_dropout", "seed", "optimizer_type", "base_model_pp_plan", "base_model_tp_plan",
    )
)
# fmt: on
"""Keys that have no influence on a forward pass: ids of tokens, training, generation, how the weights are stored."""


class Settings:
    """The keys of a config.json, and which of them have been read.

    Args:
        config: the parsed file.
        place: the file, for messages.
    """

    def __init__(self, config: Config, place: Path) -> None:
        self.config = dict(config)
        self.place = place
        self._read: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return self.config.get(key) is not None

    def get(self, key: str, default: Any = None) -> Any:
        """A key's value, the default where it is absent or null."""
        self._read.add(key)
        value = self.config.get(key)
        return default if value is None else value

    def size(self, key: str, default: int | None = None) -> int:
        """A positive whole number.

        Raises:
            KeyError: it is absent and has no default.
            ValueError: it is something else.
        """
        self._read.add(key)
        value = self.config.get(key)
        if value is None:
            value = self.config[key] if default is None else default
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
            raise ValueError(f"{key} is {value!r}, not a positive whole number")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number.

        Raises:
            KeyError: it is absent and has no default.
            ValueError: it is something else.
        """
        value = self.get(key, default)
        if value is None:
            raise KeyError(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e30:
            raise ValueError(f"{key} is {value!r}, not a number")
        return float(value)

    def flag(self, key: str, *, default: bool = False) -> bool:
        """True or false.

        Raises:
            ValueError: it is something else.
        """
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise ValueError(f"{key} is {value!r}, neither true nor false")
        return value

    def only(self, key: str, *allowed: Any) -> Any:
        """A key that must have one of these values; the first stands for its absence.

        Raises:
            ModelError: it has another; with the key and both values.
        """
        value = self.get(key, allowed[0])
        if value not in allowed:
            raise self.refusal(key, value, " or ".join(json.dumps(one) for one in allowed))
        return value

    def choice(self, key: str, names: dict[str, str], default: str) -> str:
        """What a name in the config is called here: ``{"gelu_new": "gelu_tanh", …}``.

        Raises:
            ModelError: the name is not in the table.
        """
        value = self.get(key, default)
        if value not in names:
            raise self.refusal(key, value, " or ".join(json.dumps(name) for name in names))
        return names[value]

    def part(self, key: str) -> Settings:
        """The settings under a key whose value is an object; empty where it is absent."""
        value = self.get(key, {})
        if not isinstance(value, dict):
            raise ValueError(f"{key} is {value!r}, not an object")
        return Settings(value, self.place)

    def fill(self, **values: Any) -> None:
        """Gives keys that are absent the family's own values."""
        self.config = {**values, **{key: value for key, value in self.config.items() if value is not None}}

    def ignore(self, *keys: str) -> None:
        """Marks keys that do not matter in this family."""
        self._read.update(keys)

    def refusal(self, key: str, value: object, expected: str) -> ModelError:
        """The error for a value that is not computed here."""
        quantised = key == "quantization_config"
        return ModelError(
            f"{self.place}: {key} is not supported",
            expected=f"{key}: {expected}",
            found=f"{key}: {json.dumps(value, default=str)[:200]}",
            do="use the original, unquantised model" if quantised else "use another model",
        )

    def finish(self) -> None:
        """Refuses what nobody has read.

        Raises:
            ModelError: a key that is set, is not harmless and is not known.
        """
        for key, value in self.config.items():
            idle = value is None or value is False or value in ([], {}, "")
            if not (idle or key in self._read or key in HARMLESS or key.startswith("_")):
                raise ModelError(
                    f"{self.place}: the setting {key} is not known, and it could change what the model computes",
                    expected="settings that the family's table reads",
                    found=f"{key}: {json.dumps(value, default=str)[:200]}",
                    do=f"if {key} does not matter to the forward pass, take it out of config.json; otherwise the "
                    "family's table in strop/model/families has to read it",
                )
