"""One number of our kernel of an op, on the last line: run by another commit's code, so it asks little of the harness.

    measure_script.py util OP      the largest share of its budget that an error takes, over sampled cases
    measure_script.py latency OP   median seconds of a call on the op's decode shape

Ends in 125 where this commit has no such op, kernel or harness.
"""

import math
import statistics
import sys
import time

CASES, CALLS, SECONDS = 12, 2000, 0.3


def main(metric: str, name: str) -> float:
    """The number, lower is better."""
    from minimax_m2.harness.judge import build, call, judge
    from minimax_m2.harness.op import find_op
    from minimax_m2.harness.providers.ours import ours
    from minimax_m2.harness.sampling import sampled

    op, provider = find_op(name), ours()
    function, variant = provider.functions(name), provider.variants_of(name)[-1]
    if function is None:
        raise LookupError(f"no kernel of {name}")
    if metric == "util":
        shares = [judge(case, provider, variant).utilisation for case in sampled(op, CASES)]
        return max((math.inf if math.isnan(share) else share for share in shares), default=math.inf)
    arguments, times = build(op, op.shape("decode"), provider), list[float]()
    until = time.perf_counter() + SECONDS
    with provider.enter(variant):
        call(op, function, arguments)
        while len(times) < CALLS and (not times or time.perf_counter() < until):
            start = time.perf_counter()
            call(op, function, arguments)
            times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    try:
        found = main(*sys.argv[1:])
    except (ImportError, AttributeError, LookupError) as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.exit(125)
    sys.stdout.write(f"{found!r}\n")
