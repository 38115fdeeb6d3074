"""The metrics that tasks name.

A metric's scores lie between 0 and 1, higher is better. A request that failed is scored as the empty answer, without
its credit. Names that end in `_as_published` repeat the measure of LoRA Land's evaluation code, faults included, beside
ours; they serve comparison with published scores only.
"""

from __future__ import annotations

from atoll.config.explain import did_you_mean
from atoll.errors import ConfigError
from atoll.tasks.metrics import code, ifeval, lists, numbers, overlap, published, sql, text
from atoll.tasks.metrics.metric import LORA_LAND, Answer, Metric, f1, mean

__all__ = ["METRICS", "Answer", "Metric", "f1", "find_metric", "mean"]

_BLEU = "Papineni et al. 2002, Bleu; counts over the test set; equal to sacrebleu 2.6.0"
_CHRF = "Popović 2015 and 2016, chrF2; counts over the test set; equal to sacrebleu 2.6.0"
_DROP = "Dua et al. 2019, DROP, arXiv 1903.00161; the best over the accepted answers"
_WIKISQL = "Zhong et al. 2017, Seq2SQL, arXiv 1709.00103"
_IFEVAL = "Zhou et al. 2023, Instruction-Following Evaluation, arXiv 2311.07911"

_TEXT = (
    Metric("accuracy", text.accuracy, mean, "exact match after folding case, white space and marks around the answer"),
    Metric("exact_match", text.exact_match, mean, "equality but for white space around the answer"),
    Metric("label_match", text.label_match, mean, "the answer begins with the label, after the same folding"),
    Metric("rouge_l", text.rouge_l, mean, "Lin 2004, ROUGE; mean of the examples' F; equal to rouge-score 0.1.2"),
    Metric("bleu", overlap.bleu, overlap.bleu_score, _BLEU),
    Metric("bleu_references", overlap.bleu_references, overlap.bleu_score, _BLEU, columns=("references",)),
    Metric("chrf", overlap.chrf, overlap.chrf_score, _CHRF),
    Metric("chrf_references", overlap.chrf_references, overlap.chrf_score, _CHRF, columns=("references",)),
)
_LISTS = (
    Metric("entity_f1", lists.entity_f1, f1, "Tjong Kim Sang and De Meulder 2003; micro-averaged over kinds"),
    Metric("label_set_f1", lists.label_set_f1, f1, "Lewis 1997 on Reuters-21578; F1 micro-averaged over labels"),
    Metric("drop_f1", lists.drop_f1, mean, _DROP, columns=("answers",)),
    Metric("drop_exact", lists.drop_exact, mean, _DROP, columns=("answers",)),
)
_NUMBERS = (
    Metric("closeness", numbers.closeness, mean, "1 - mean absolute error / 5, as LoRA Land reports STS-B"),
    Metric(
        "spearman",
        numbers.spearman,
        numbers.correlation,
        "Spearman 1904; Cer et al. 2017 for STS-B; below 0 counts as 0",
        rank=numbers.spearman_rows,
    ),
    Metric("gsm8k_number", numbers.gsm8k_number, mean, "Cobbe et al. 2021, arXiv 2110.14168; the number after ####"),
)
_PROGRAMS = (
    Metric("sql_execution", sql.sql_execution, mean, "Zhong et al. 2020, Semantic Evaluation for Text-to-SQL"),
    Metric("sql_canonical", sql.sql_canonical, mean, "equality of syntax trees (sqlglot) in one form"),
    Metric("wikisql_logical", sql.wikisql_logical, mean, f"{_WIKISQL}; conditions in any order", columns=("table",)),
    Metric("wikisql_execution", sql.wikisql_execution, mean, f"{_WIKISQL}; made-up rows", columns=("table",)),
    Metric(
        "pass_at_1",
        code.pass_at_1,
        mean,
        "Chen et al. 2021, HumanEval, arXiv 2107.03374; one answer a problem",
        columns=("problem", "entry_point", "test"),
    ),
    Metric("ifeval_strict", ifeval.ifeval_strict, mean, f"{_IFEVAL}; prompt level", columns=("kwargs",)),
    Metric("ifeval_loose", ifeval.ifeval_loose, mean, f"{_IFEVAL}; prompt level", columns=("kwargs",)),
)
_AS_PUBLISHED = (
    Metric("accuracy_flex_as_published", published.accuracy_flex, mean, f"{LORA_LAND}, binary_accuracy_flex"),
    Metric("accuracy_digit_as_published", published.accuracy_digit, mean, f"{LORA_LAND}, hellaswag and mnli_accuracy"),
    Metric("accuracy_mrpc_as_published", published.accuracy_mrpc, mean, f"{LORA_LAND}, mrpc_accuracy"),
    Metric("accuracy_number_as_published", published.accuracy_number, mean, f"{LORA_LAND}, mmlu_accuracy"),
    Metric("accuracy_substring_as_published", published.accuracy_substring, mean, f"{LORA_LAND}, customer_support"),
    Metric("rouge_class_as_published", published.rouge_class, mean, f"{LORA_LAND}, dbpedia"),
    Metric("closeness_as_published", published.closeness, mean, f"{LORA_LAND}, stsb"),
    Metric("gsm8k_number_as_published", published.gsm8k_number, mean, f"{LORA_LAND}, gsm8k_regex"),
)

METRICS: dict[str, Metric] = {
    metric.name: metric for metric in (*_TEXT, *_LISTS, *_NUMBERS, *_PROGRAMS, *_AS_PUBLISHED)
}


def find_metric(name: str, *, where: str | None = None) -> Metric:
    """The metric of that name. Raises ConfigError."""
    if name in METRICS:
        return METRICS[name]
    close = did_you_mean(name, METRICS)
    mend = f"write `{close}`" if close else "choose one of " + ", ".join(sorted(METRICS))
    raise ConfigError(f"there is no metric named {name!r}", where=where, mend=mend)
