"""Judge any implementation of a MiniMax-M2 op against the reference.

Five nouns carry the design:

    Op        one step or fusion of the model         harness/op.py, harness/ops/<op>.py
    Case      a flat recipe for one set of inputs     harness/case.py
    Provider  somebody's implementation of some ops   harness/provider.py
    Verdict   what happened, with evidence            harness/verdict.py
    Record    one line of JSON, error and time        harness/record.py
"""
