#include <atomic>

#include "core/status.h"
#include "kernels/simd/kernel_table.h"

namespace shoal::simd {

namespace baseline {
extern const KernelTable kTable;
}
#if defined(__x86_64__)
namespace avx2 {
extern const KernelTable kTable;
}
namespace avx512 {
extern const KernelTable kTable;
}
namespace avx512bf16 {
extern const KernelTable kTable;
}
#endif

bool IsSupported(Isa isa) {
#if defined(__x86_64__)
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  switch (isa) {
    case Isa::kBaseline:
      return true;
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Isa::kAvx512:
      return avx512;
    case Isa::kAvx512Bf16:
      return avx512 && __builtin_cpu_supports("avx512bf16");
  }
#endif
  return isa == Isa::kBaseline;
}

const KernelTable& TableOf(Isa isa) {
  SHOAL_CHECK(IsSupported(isa)) << "this machine lacks instruction set " << static_cast<int>(isa);
  switch (isa) {
    case Isa::kBaseline:
      return baseline::kTable;
#if defined(__x86_64__)
    case Isa::kAvx2:
      return avx2::kTable;
    case Isa::kAvx512:
      return avx512::kTable;
    case Isa::kAvx512Bf16:
      return avx512bf16::kTable;
#else
    default:
      break;
#endif
  }
  return baseline::kTable;
}

namespace {

const KernelTable& BestTable() {
  for (Isa isa : {Isa::kAvx512Bf16, Isa::kAvx512, Isa::kAvx2}) {
    if (IsSupported(isa)) return TableOf(isa);
  }
  return TableOf(Isa::kBaseline);
}

std::atomic<const KernelTable*>& Chosen() {
  static std::atomic<const KernelTable*> table{&BestTable()};
  return table;
}

}  // namespace

const KernelTable& Kernels() { return *Chosen().load(std::memory_order_relaxed); }
void UseIsa(Isa isa) { Chosen() = &TableOf(isa); }

}  // namespace shoal::simd
