// What a tile unit uses beside its tiles: the vectors of AVX-512 with BF16, which every processor with AMX has.
#pragma once
#include "vector_avx512_bf16.h"
