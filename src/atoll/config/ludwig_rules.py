"""What becomes of Ludwig's keys that have no counterpart here: told in a note, or refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Note:
    """A key without effect here, and why; unless it has a neutral value, which needs no word."""

    why: str
    neutral: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Refusal:
    """A key that would change the result and cannot be translated, unless it has a neutral value."""

    neutral: tuple[Any, ...]
    why: str
    mend: str = "remove it"


_TOKENS = Note("the base model's own tokeniser is used")
_MEMORY = Note("memory is bounded by the fleet's `token_budget`")
_SHOWN = Note("it changes what is shown, not what is learned")
_PLATEAU = Note("nothing is changed on a plateau")
_BEAMS = Note("there is no beam search", neutral=(None, 1, 1.0, 0, 0.0, False))
_SAMPLING = Refusal((None, 0, 0.0, 1, 1.0, False), "a task's answers know a temperature only",
                    "remove it, and send it with the requests that want it")  # fmt: skip
_FEATURE: dict[str, Note | Refusal] = {
    "encoder": Note("the base model reads the text"),
    "decoder": Note("the base model writes the text"),
    "loss": Note("the loss is that of the next token"),
    "tied": Note("nothing is tied", neutral=(None,)),
    "proc_column": Note("data are not cached"),
    "num_classes": Note("the answer is text", neutral=(None,)),
    "default_validation_metric": Note("validation measures the loss"),
}
_FEATURE_PREPROCESSING: dict[str, Note | Refusal] = {
    "tokenizer": _TOKENS,
    "pretrained_model_name_or_path": _TOKENS,
    "vocab_file": _TOKENS,
    "most_common": _TOKENS,
    "unknown_symbol": _TOKENS,
    "padding": Note("nothing is padded"),
    "padding_symbol": Note("nothing is padded"),
    "cache_encoder_embeddings": Note("nothing is cached", neutral=(False,)),
    "missing_value_strategy": Note("a missing value is an error that names its row"),
    "fill_value": Note("a missing value is an error that names its row"),
    "lowercase": Refusal((False,), "the text is taken as it is", "lower it in the data, and remove the key"),
    "sequence_length": Refusal((None,), "examples have the length they have"),
    "prompt": Refusal((None, {}), "a fleet has the prompt in one place", "move it to `prompt` at the top of the file"),
}
RULES: dict[tuple[str, ...], dict[str, Note | Refusal]] = {
    (): {
        "backend": Note("one machine trains all adapters, on its GPU where it has one"),
        "ludwig_version": Note("the file's keys say what is meant"),
        "hyperopt": Refusal((None, {}), "nothing is searched", "remove it, and try values as adapters of one fleet"),
        "model_parameters": Refusal(
            (None, {}), "positions and embeddings are the base model's own"
        ),
        "defaults": Refusal((None, {}), "a fleet has no defaults of features", "move them into the feature"),
    },
    ("input_features", "*"): _FEATURE,
    ("output_features", "*"): _FEATURE,
    ("input_features", "*", "preprocessing"): _FEATURE_PREPROCESSING,
    ("output_features", "*", "preprocessing"): _FEATURE_PREPROCESSING,
    ("prompt",): {
        "retrieval": Refusal(
            (None, {}),
            "nothing is retrieved",
            "write the context into a column",
        ),
    },
    ("adapter",): {
        "postprocessor": Note("adapters stay apart from the base; exporting can merge them"),
        "bias_type": Refusal(("none",), "biases are not trained", "set `bias_type: none`"),
        "use_dora": Refusal((False,), "DoRA is not implemented", "set `use_dora: false`"),
        "pretrained_adapter_weights": Refusal((None,), "training starts from a new adapter"),
        "init_lora_weights": Refusal((None, True, "default"), "adapters start at zero, as PEFT's default does"),
        "loraplus_lr_ratio": Refusal((None, 1, 1.0), "both sides of an adapter have one rate"),
    },
    ("quantization",): {
        "llm_int8_threshold": Note("outliers stay in 8 bits, so that an answer depends on no other of its batch"),
        "llm_int8_has_fp16_weight": Note("weights are kept in 8 bits", neutral=(False,)),
        "bnb_4bit_compute_dtype": Note("computed in the number format that `dtype` of the fleet says"),
        "bnb_4bit_quant_type": Refusal(("nf4",), "4 bits are NF4", "set `bnb_4bit_quant_type: nf4`"),
        "bnb_4bit_use_double_quant": Refusal((True,), "scales are quantised too", "set it to true"),
        "backend": Refusal((None, "bitsandbytes"), "bitsandbytes quantises"),
        "mode": Refusal((None,), "bitsandbytes quantises"),
        "qat": Refusal((None, False), "the base model is frozen"),
    },
    ("trainer",): {
        "max_batch_size": _MEMORY,
        "base_learning_rate": Note("Ludwig does not read it either when it fine-tunes"),
        "evaluate_training_set": _SHOWN,
        "enable_profiling": _SHOWN,
        "profiler": _SHOWN,
        "validation_field": Note("there is one output"),
        "learning_rate_scaling": Note("one process trains"),
        "use_mixed_precision": Note("adapters are trained in float32 over a base in `dtype` of the fleet"),
        "compile": Note("kernels are chosen by the machine"),
        "increase_batch_size_on_plateau_patience": _PLATEAU,
        "increase_batch_size_on_plateau_rate": _PLATEAU,
        "increase_batch_size_eval_metric": _PLATEAU,
        "increase_batch_size_eval_split": _PLATEAU,
        "regularization_type": Note("its weight is 0"),
        "regularization_lambda": Refusal((0, 0.0), "adapters are not regularised", "use `optimizer.weight_decay`"),
        "validation_metric": Refusal((None, "loss", "perplexity"), "validation measures the loss", "set it to `loss`"),
        "increase_batch_size_on_plateau": Refusal((0,), "nothing is changed on a plateau"),
        "should_shuffle": Refusal((True,), "every epoch has an order of its own"),
        "skip_all_evaluation": Refusal((False,), "every adapter is validated", "set `early_stop: -1` instead"),
        "bucketing_field": Refusal((None,), "examples of all lengths share a pass"),
        "layers_to_freeze_regex": Refusal((None,), "the base is frozen as a whole", "name `target_modules` instead"),
    },
    ("trainer", "optimizer"): {
        "betas": Refusal(([0.9, 0.999],), "Adam's betas are 0.9 and 0.999"),
        "eps": Refusal((1e-8,), "Adam's epsilon is 1e-8"),
        "amsgrad": Refusal((False,), "AMSGrad is not implemented"),
    },
    ("trainer", "learning_rate_scheduler"): {
        "decay_rate": Note("only an exponential decay reads it"),
        "decay_steps": Note("only an exponential decay reads it"),
        "staircase": Note("only an exponential decay reads it"),
        "reduce_on_plateau": Refusal((0,), "nothing is changed on a plateau", "remove it, and choose a `decay`"),
        "reduce_on_plateau_patience": _PLATEAU,
        "reduce_on_plateau_rate": _PLATEAU,
        "reduce_eval_metric": _PLATEAU,
        "reduce_eval_split": _PLATEAU,
        "warmup_evaluations": Refusal((0, 0.0), "the warm-up is a share of all steps", "use `warmup_fraction`"),
        "t_0": Refusal((None,), "the rate restarts after each validation round", "use `steps_per_checkpoint`"),
        "t_mult": Refusal((None, 1), "all cycles have one length"),
        "eta_min": Refusal((None, 0, 0.0), "the rate falls towards 0"),
    },
    ("trainer", "gradient_clipping"): {
        "clipnorm": Refusal((None,), "the norm of the whole gradient is clipped", "use `clipglobalnorm`"),
        "clipvalue": Refusal((None,), "the norm of the whole gradient is clipped", "use `clipglobalnorm`"),
    },
    ("preprocessing",): {
        "sample_size": Refusal((None,), "a part of a file is a share", "use `sample_ratio`"),
        "oversample_minority": Refusal((None,), "every example counts once an epoch"),
        "undersample_majority": Refusal((None,), "every example counts once an epoch"),
    },
    ("preprocessing", "split"): {
        "datetime_format": Refusal((None,), "times are written as in ISO 8601", "write them so, and remove the key"),
    },
    ("generation",): {
        "use_cache": Note("there always is a cache", neutral=(True,)),
        "prompt_lookup_num_tokens": Note("it changes the speed only"),
        "max_length": Note("`max_new_tokens` limits the answer"),
        "pad_token_id": Note("nothing is padded"),
        "bos_token_id": _TOKENS,
        "eos_token_id": _TOKENS,
        "early_stopping": _BEAMS,
        "length_penalty": _BEAMS,
        "num_beam_groups": _BEAMS,
        "diversity_penalty": _BEAMS,
        "renormalize_logits": Note("it changes no answer", neutral=(False,)),
        "remove_invalid_values": Note("invalid values end a request with an error", neutral=(False,)),
        "num_beams": Refusal((None, 1), "there is no beam search"),
        **dict.fromkeys(
            ("min_new_tokens", "min_length", "penalty_alpha", "repetition_penalty", "encoder_repetition_penalty",
             "no_repeat_ngram_size", "bad_words_ids", "force_words_ids", "forced_bos_token_id", "forced_eos_token_id",
             "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens", "forced_decoder_ids",
             "sequence_bias", "guidance_scale", "max_time"),
            _SAMPLING,
        ),
    },
}  # fmt: skip

# These shape sampled answers only: a greedy answer takes the likeliest token whatever they are.
SAMPLING_RULES: dict[str, Note | Refusal] = {
    "top_k": Refusal((None, 0, 50), "a task's answers know a temperature only", _SAMPLING.mend),
    **dict.fromkeys(("top_p", "typical_p", "epsilon_cutoff", "eta_cutoff"), _SAMPLING),
}
