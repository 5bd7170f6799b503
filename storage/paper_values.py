"""The paper's printed tables, to be shown beside what is measured here.

G. U. Talasso, A. M. de Souza, D. Guidoni, E. Cerqueira, L. A. Villas: Fine-Tuning Eficiente de Modelos de Linguagem
Para Detectar Anomalias em Logs Privados usando Aprendizado Federado. Figures 3 to 5 print no numbers.
"""

import polars as pl

PAPER = "Talasso et al."
"""The paper, as sources name it."""

_TABLE_1 = {
    "LogBERT": (False, True, False, False, False),
    "LogGPT": (False, False, False, True, True),
    "LogLLM": (False, False, True, False, True),
    "LogFiT": (False, True, True, False, True),
    "FedLog": (True, True, False, True, False),
    "the paper": (True, True, True, True, True),
}
_PROPERTIES = ("federated", "unsupervised", "without_parser", "parameter_efficient", "pretrained")

_SIZES = ("135M", "360M", "1.7B")
_MEGABYTES = {
    "R=2": (0.48, 0.84, 1.59),
    "R=8": (1.86, 3.29, 6.30),
    "R=32": (7.39, 13.12, 25.18),
    "R=128": (29.51, 52.45, 100.68),
    "FFT": (538.09, 1447.32, 6845.53),
}
_PARAMETERS_M = {
    "R=2": (0.12, 0.20, 0.39),
    "R=8": (0.46, 0.82, 1.57),
    "R=32": (1.84, 3.28, 6.29),
    "R=128": (7.37, 13.11, 25.17),
    "FFT": (134.52, 361.82, 1711.38),
}
_TABLE_3 = {
    "135M": (30.8908, 0.3973, 1021.37),
    "360M": (62.3438, 0.8539, 1981.91),
    "1.7B": (253.0354, 7.1095, 7712.16),
}


def printed_table_1() -> pl.DataFrame:
    """Table 1: what each method is, by the paper's account."""
    rows = [{"method": method, **dict(zip(_PROPERTIES, marks, strict=True))} for method, marks in _TABLE_1.items()]
    return pl.DataFrame(rows).with_columns(source=pl.lit(f"{PAPER}, Table 1"))


def printed_table_2() -> pl.DataFrame:
    """Table 2: megabytes (10^6 bytes) of a message a client and round, and millions of trained parameters."""
    rows = [
        {
            "size": size,
            "tuning": tuning,
            "printed_mb": _MEGABYTES[tuning][column],
            "printed_parameters_m": _PARAMETERS_M[tuning][column],
        }
        for column, size in enumerate(_SIZES)
        for tuning in _MEGABYTES
    ]
    return pl.DataFrame(rows).with_columns(source=pl.lit(f"{PAPER}, Table 2"))


def printed_table_3() -> pl.DataFrame:
    """Table 3: time of one sample (ms, mean and standard deviation of 1,000 at batch 1) and peak memory (MB), A100."""
    rows = [
        {"size": size, "printed_ms": mean, "printed_deviation_ms": deviation, "printed_peak_mb": peak}
        for size, (mean, deviation, peak) in _TABLE_3.items()
    ]
    return pl.DataFrame(rows).with_columns(source=pl.lit(f"{PAPER}, Table 3 (A100, 1000 samples, batch 1)"))
