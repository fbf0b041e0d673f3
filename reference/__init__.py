"""What MiniMax-M2 computes, in plain torch: the oracle every kernel is judged by.

Symbols, used in shapes, code, test ids and docs alike (values of MiniMax-M2 in brackets):

    T   tokens in the batch                 E   experts                     [256]
    H   hidden size            [3072]       K   experts per token, top_k    [8]
    Hq  query heads            [48]         I   expert intermediate size    [1536]
    Hk  key/value heads        [8]          V   vocabulary                  [200064]
    D   head dimension         [128]        R   rotary dimension            [64]
    S   key/value length                    B   sequences

One op a file, and the file's name is the op's: ``reference/routing.py`` holds ``routing``.
"""
