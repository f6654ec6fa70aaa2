// Runs a check on every instruction set of this machine.
#pragma once

#include <gtest/gtest.h>

#include "kernels/simd/kernel_table.h"

namespace shoal {

template <class F>
void ForEachIsa(F&& check) {
  using simd::Isa;
  Isa best = Isa::kBaseline;
  for (Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16}) {
    if (!simd::IsSupported(isa)) continue;
    best = isa;
    SCOPED_TRACE(testing::Message() << "instruction set " << static_cast<int>(isa));
    simd::UseIsa(isa);
    check();
  }
  simd::UseIsa(best);
}

}  // namespace shoal
