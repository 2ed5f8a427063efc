// Products with weights in the plain formats: see `quant_product.cuh`.
#include "quant_product.cuh"

QUANT_PRODUCTS(Plain4, bf16)
QUANT_PRODUCTS(Plain4, f16)
QUANT_PRODUCTS(Plain5, bf16)
QUANT_PRODUCTS(Plain5, f16)
QUANT_PRODUCTS(Plain8, bf16)
QUANT_PRODUCTS(Plain8, f16)
QUANT_PRODUCTS(Float8, bf16)
QUANT_PRODUCTS(Float8, f16)
