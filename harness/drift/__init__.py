"""Where a model's numbers leave the reference's: which layer, which step, which tokens.

``calls`` stands taps in a table of ops; ``lockstep`` judges every step alone, ``running`` the whole model; ``record``
holds the schema of what they find.
"""
