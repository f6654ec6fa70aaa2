// Legend: N rows of x, R rows taken, W elements a row.
#include "kernels/take_rows.h"

#include <cstring>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <torch/csrc/autograd/custom_function.h>

#include "core/dtype.h"
#include "core/status.h"
#include "kernels/fused.h"
#include "kernels/threads.h"

namespace shoal {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Places of the index by the row that they take: those of row n are places[first[n] .. first[n +
// 1]), in ascending order.
struct TakersOfRows {
  TakersOfRows(const Tensor& index_R, int64_t rows) : first(rows + 1, 0), places(index_R.numel()) {
    const int64_t* index = index_R.const_data_ptr<int64_t>();
    for (int64_t r = 0; r < index_R.numel(); ++r) ++first[index[r] + 1];
    for (int64_t n = 0; n < rows; ++n) first[n + 1] += first[n];
    std::vector<int64_t> next(first.begin(), first.end() - 1);
    for (int64_t r = 0; r < index_R.numel(); ++r) places[next[index[r]]++] = r;
  }
  std::vector<int64_t> first, places;
};

template <class T>
void SumTakers(const Tensor& dy_RW, const TakersOfRows& takers, const Tensor& dx_NW) {
  using Sum = std::conditional_t<std::is_same_v<T, double>, double, float>;
  const int64_t width = dx_NW.size(1);
  const T* dy = dy_RW.const_data_ptr<T>();
  T* dx = dx_NW.mutable_data_ptr<T>();
  ParallelFor(dx_NW.size(0), RowGrain(width), [&](int64_t begin, int64_t end) {
    std::vector<Sum> sum(width);
    for (int64_t n = begin; n < end; ++n) {
      const int64_t first = takers.first[n], last = takers.first[n + 1];
      T* out = dx + n * width;
      if (last == first + 1) {
        std::memcpy(out, dy + takers.places[first] * width, width * sizeof(T));
        continue;
      }
      std::fill(sum.begin(), sum.end(), Sum{0});
      for (int64_t i = first; i < last; ++i) {
        const T* row = dy + takers.places[i] * width;
        for (int64_t w = 0; w < width; ++w) sum[w] += static_cast<Sum>(row[w]);
      }
      for (int64_t w = 0; w < width; ++w) out[w] = static_cast<T>(sum[w]);
    }
  });
}

struct TakeRowsFunction : torch::autograd::Function<TakeRowsFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x_NW, const Tensor& index_R) {
    ctx->save_for_backward({index_R});
    ctx->saved_data["rows"] = x_NW.size(0);
    return CopyRows(x_NW, index_R);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const Tensor dy_RW = grads[0].contiguous();
    const int64_t rows = ctx->saved_data["rows"].toInt();
    const Tensor index_R = ctx->get_saved_variables()[0];
    if (!dy_RW.is_cpu()) {
      const Tensor sum_NW =
          at::zeros({rows, dy_RW.size(1)}, dy_RW.options().dtype(SumDtype(dy_RW.scalar_type())));
      AddRowsInOrder(dy_RW, index_R, sum_NW);
      return {sum_NW.to(dy_RW.scalar_type()), Tensor()};
    }
    const TakersOfRows takers(index_R, rows);
    const Tensor dx_NW = at::empty({rows, dy_RW.size(1)}, dy_RW.options());
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, dy_RW.scalar_type(), "TakeRows",
                                    [&] { SumTakers<scalar_t>(dy_RW, takers, dx_NW); });
    return {dx_NW, Tensor()};
  }
};

}  // namespace

void AddRowsInOrder(const Tensor& x_RW, const Tensor& index_R, const Tensor& sum_NW) {
  const at::NoGradGuard no_grad;
  Tensor sum = sum_NW;
  // CUDA sorts the places of each row (index_add_ adds them as they come). `unsafe` leaves out a
  // check of the indices that waits for the device.
  at::_index_put_impl_(sum, {index_R}, x_RW.to(sum.scalar_type()), /*accumulate=*/true,
                       /*unsafe=*/true);
}

void CheckRows(const char* what, const Tensor& index, int64_t rows) {
  if (!index.is_cpu()) return;
  const int64_t* values = Data<int64_t>(index);
  for (int64_t i = 0; i < index.numel(); ++i) {
    SHOAL_CHECK(0 <= values[i] && values[i] < rows)
        << what << ": index " << values[i] << ", the table holds " << rows << " rows";
  }
}

Tensor CopyRows(const Tensor& x_NW, const Tensor& index) {
  const int64_t width = x_NW.size(1), bytes = ElementBytes(x_NW.scalar_type()),
                stride = x_NW.stride(0);
  std::vector<int64_t> sizes = index.sizes().vec();
  sizes.push_back(width);
  if (!x_NW.is_cpu()) return x_NW.index_select(0, index.view({-1})).view(sizes);
  const int64_t* rows = Data<int64_t>(index);
  Tensor y = at::empty(sizes, x_NW.options());
  const char* from = static_cast<const char*>(x_NW.const_data_ptr());
  char* to = static_cast<char*>(y.mutable_data_ptr());
  ParallelFor(index.numel(), RowGrain(width), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      std::memcpy(to + r * width * bytes, from + rows[r] * stride * bytes, width * bytes);
  });
  return y;
}

Tensor TakeRows(const Tensor& x, const Tensor& index_R) {
  const int64_t rows = x.size(0);
  const Tensor index = index_R.contiguous();
  CheckRows("TakeRows", index, rows);
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes[0] = index.numel();
  Tensor x_NW = x.reshape({rows, -1});
  if (x_NW.stride(1) != 1) x_NW = x_NW.contiguous();
  return TakeRowsFunction::apply(x_NW, index).view(sizes);
}

}  // namespace shoal
