#!/usr/bin/env python3
"""Writes specs/vectors/privacy.json: what the accountant must say, computed with 80 digits.

    python3 testnet/interop/privacy_vectors.py > specs/vectors/privacy.json

Needs nothing but Python, and shares nothing with the accountant: binomials are exact integers, everything else
is Python's `decimal`. The formula is that of specs/privacy.md section 2.
"""

import json
import math
import sys
from decimal import MAX_EMAX, MIN_EMIN, ROUND_CEILING, Context, Decimal, localcontext

ORDERS = [*range(2, 65), 128, 256, 512, 1024]

STEPS = [
    ("0.01", "1.0"),
    ("0.02", "0.8"),
    ("0.015625", "1.1"),
    ("0.1", "2.0"),
    ("1.0", "4.0"),
    ("1e-9", "1.0"),
    ("1e-9", "0.12"),
    ("1e-6", "0.25"),
    ("1e-5", "1000000.0"),
    ("0.001", "0.5"),
    ("0.5", "0.01"),
    ("0.999", "3.0"),
    ("0.3", "20.0"),
    ("0.000244140625", "0.7"),
]

RUNS = [
    ([("0.01", "1.0", 1000)], (1, -5)),
    ([("0.02", "0.8", 500)], (1, -5)),
    ([("0.015625", "1.1", 320)], (1, -6)),
    ([("0.1", "2.0", 100)], (1, -5)),
    ([("1.0", "4.0", 20)], (1, -5)),
    ([("0.01", "1.0", 1000), ("0.1", "2.0", 100)], (1, -5)),
    ([("1e-9", "1.0", 1)], (1, -5)),
    ([("0.001", "0.5", 1_000_000)], (25, -9)),
]


def rdp(q, sigma):
    """One step's divergence at each order, for the floats nearest to these numbers."""
    q, sigma = Decimal(float(q)), Decimal(float(sigma))
    if q == 1:
        return [order / (2 * sigma * sigma) for order in ORDERS]
    grown = [((k * k - k) / (2 * sigma * sigma)).exp() - 1 for k in range(ORDERS[-1] + 1)]
    powers, rest = [Decimal(1)], [Decimal(1)]
    for _ in range(ORDERS[-1]):
        powers.append(powers[-1] * q)
        rest.append(rest[-1] * (1 - q))
    found = []
    for order in ORDERS:
        terms = (math.comb(order, k) * rest[order - k] * powers[k] * grown[k] for k in range(2, order + 1))
        found.append((1 + sum(terms)).ln() / (order - 1))
    return found


def epsilon(divergences, delta):
    """The conversion of specs/privacy.md section 2."""
    found = []
    for order, divergence in zip(ORDERS, divergences):
        order = Decimal(order)
        found.append(divergence + ((order - 1) / order).ln() - (delta.ln() + order.ln()) / (order - 1))
    return max(min(found), Decimal(0))


def cbor(value):
    """Strict DAG-CBOR of what a record holds; byte strings are `bytes`."""

    def head(major, number):
        for size, code in ((0, 24), (1, 24), (2, 25), (4, 26), (8, 27)):
            if size == 0 and number < 24:
                return bytes([major << 5 | number])
            if size and number < 1 << 8 * size:
                return bytes([major << 5 | code]) + number.to_bytes(size, "big")
        raise ValueError(number)

    if isinstance(value, int):
        return head(0, value) if value >= 0 else head(1, -1 - value)
    if isinstance(value, bytes):
        return head(2, len(value)) + value
    if isinstance(value, str):
        return head(3, len(value.encode())) + value.encode()
    if isinstance(value, list):
        return head(4, len(value)) + b"".join(map(cbor, value))
    pairs = sorted((cbor(key), cbor(item)) for key, item in value.items())
    return head(5, len(pairs)) + b"".join(key + item for key, item in pairs)


def shown(value):
    """The same in JSON: byte strings as hexadecimal."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list):
        return [shown(item) for item in value]
    if isinstance(value, dict):
        return {key: shown(item) for key, item in value.items()}
    return value


def records():
    job, requester, first, second = (bytes([byte]) * 32 for byte in (1, 2, 3, 4))
    budget = {"milli_epsilon_max": 3000, "delta": {"mantissa": 1, "exp10": -5}}
    private = {
        "job": job,
        "requester": requester,
        "steps": 1000,
        "per_step": [1 << at % 60 for at in range(len(ORDERS))],
        "charges": [{"lineage": first, "budget": budget}, {"lineage": second}],
    }
    other = {"job": job, "requester": requester, "steps": 1, "charges": [{"lineage": first}]}
    return [
        {"reserved": private},
        {"reserved": other},
        {"progressed": {"job": job, "steps": 37}},
        {"settled": {"job": job, "steps": 4294967295}},
    ]


def main():
    with localcontext(Context(prec=80, Emax=MAX_EMAX, Emin=MIN_EMIN)):
        known = {pair: rdp(*pair) for pair in {*STEPS, *((q, s) for run, _ in RUNS for q, s, _ in run)}}
        steps = [
            {"sampling_rate": q, "noise_multiplier": s, "rdp": [f"{value:.24e}" for value in known[q, s]]}
            for q, s in STEPS
        ]
        runs = []
        for parts, (mantissa, exp10) in RUNS:
            sums = [sum(n * known[q, s][at] for q, s, n in parts) for at in range(len(ORDERS))]
            found = epsilon(sums, Decimal(mantissa).scaleb(exp10))
            runs.append(
                {
                    "parts": [{"sampling_rate": q, "noise_multiplier": s, "steps": n} for q, s, n in parts],
                    "delta": {"mantissa": mantissa, "exp10": exp10},
                    "epsilon": f"{found:.15f}",
                    "milli_epsilon": int((1000 * found).to_integral_value(ROUND_CEILING)),
                }
            )
    said = [{"fields": shown(record), "bytes": cbor(record).hex()} for record in records()]
    json.dump({"orders": ORDERS, "steps": steps, "runs": runs, "records": said}, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
