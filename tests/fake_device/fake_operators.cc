// Every ATen operator on the fake device; see fake_device.h.
#include <atomic>
#include <cstring>
#include <string_view>
#include <unordered_set>

#include <ATen/EmptyTensor.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/view_native.h>
#include <torch/library.h>

#include "core/status.h"
#include "tests/fake_device/fake_device.h"
#include "tests/fake_device/fake_memory.h"
#include "tests/fake_device/fake_streams.h"
#include "tests/fake_device/host_views.h"

namespace shoal {
namespace {

using at::Tensor;
using c10::IValue;

std::atomic<size_t> operator_calls{0};
std::atomic<size_t> waits{0};

// Calls f(tensor) for each defined tensor of an argument.
template <class F>
void ForEachTensor(const IValue& value, const F& f) {
  if (value.isTensor()) {
    if (const Tensor& tensor = value.toTensor(); tensor.defined()) f(tensor);
  } else if (value.isTensorList() || value.isOptionalTensorList()) {
    for (const IValue& element : value.toListRef()) ForEachTensor(element, f);
  }
}

// Element-wise operators, which take 0-dim host tensors as CUDA's do.
bool TakesHostScalars(const c10::OperatorHandle& op) {
  static const auto& names = *new std::unordered_set<std::string_view>{"add",
                                                                       "sub",
                                                                       "rsub",
                                                                       "mul",
                                                                       "div",
                                                                       "true_divide",
                                                                       "remainder",
                                                                       "floor_divide",
                                                                       "fmod",
                                                                       "pow",
                                                                       "atan2",
                                                                       "maximum",
                                                                       "minimum",
                                                                       "fmax",
                                                                       "fmin",
                                                                       "eq",
                                                                       "ne",
                                                                       "lt",
                                                                       "le",
                                                                       "gt",
                                                                       "ge",
                                                                       "logical_and",
                                                                       "logical_or",
                                                                       "logical_xor",
                                                                       "bitwise_and",
                                                                       "bitwise_or",
                                                                       "bitwise_xor",
                                                                       "where",
                                                                       "lerp",
                                                                       "addcmul",
                                                                       "addcdiv",
                                                                       "clamp",
                                                                       "clamp_min",
                                                                       "clamp_max",
                                                                       "masked_fill",
                                                                       "fill",
                                                                       "index_put",
                                                                       "copysign",
                                                                       "hypot",
                                                                       "xlogy",
                                                                       "_index_put_impl"};
  std::string_view name = op.schema().name();
  name.remove_prefix(std::min(name.size(), std::string_view("aten::").size()));
  while (name.ends_with('_')) name.remove_suffix(1);
  return names.contains(name);
}

c10::Stream CurrentStream(c10::Device device) {
  return c10::impl::VirtualGuardImpl(c10::kPrivateUse1).getStream(device);
}

// Operators whose results the host needs before it can go on.
bool WaitsForDevice(const c10::OperatorHandle& op) {
  static const auto& names = *new std::unordered_set<std::string_view>{"aten::_local_scalar_dense",
                                                                       "aten::nonzero",
                                                                       "aten::equal",
                                                                       "aten::masked_select",
                                                                       "aten::_unique2",
                                                                       "aten::repeat_interleave",
                                                                       "aten::bincount"};
  return names.contains(op.schema().name());
}

// The one device of all tensors among the arguments; of a factory, what it is asked for.
c10::Device CommonDevice(const c10::OperatorHandle& op, const std::vector<IValue>& args) {
  std::optional<c10::Device> device;
  for (const IValue& arg : args) {
    ForEachTensor(arg, [&](const Tensor& tensor) {
      if (!device && tensor.is_privateuseone()) device = tensor.device();
    });
  }
  const auto& described = op.schema().arguments();
  for (size_t i = 0; i < args.size(); ++i) {
    if (!device && args[i].isDevice()) device = args[i].toDevice();
    const bool written = described[i].alias_info() && described[i].alias_info()->isWrite();
    ForEachTensor(args[i], [&](const Tensor& tensor) {
      if (tensor.device() == *device) return;
      if (tensor.is_cpu() && tensor.dim() == 0 && !written && TakesHostScalars(op)) return;
      TORCH_CHECK(false, "Expected all tensors to be on the same device, but found ", *device,
                  " and ", tensor.device(), " (argument ", described[i].name(), " ", tensor.sizes(),
                  " of ", op.schema().name(), ")");
    });
  }
  TORCH_CHECK(device && device->is_privateuseone(), op.schema().name(),
              " was sent to the fake device, of which no argument speaks");
  return *device;
}

IValue ToHost(const IValue& value, HostViews& views) {
  const auto view = [&](const Tensor& tensor) {
    return tensor.defined() && tensor.is_privateuseone() ? views.Of(tensor) : tensor;
  };
  if (value.isTensor()) return view(value.toTensor());
  if (value.isTensorList()) {
    c10::List<Tensor> list;
    for (const Tensor& tensor : value.toTensorVector()) list.push_back(view(tensor));
    return list;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<Tensor>> list;
    for (const std::optional<Tensor>& tensor : value.toOptionalTensorVector())
      list.push_back(tensor ? std::optional(view(*tensor)) : std::nullopt);
    return list;
  }
  if (value.isDevice()) return c10::Device(c10::kCPU);
  return value;
}

// The argument that a return is by its schema, "Tensor(a!)": nullopt if none.
std::optional<size_t> ArgumentReturned(const c10::FunctionSchema& schema, size_t i) {
  const c10::AliasInfo* info = schema.returns()[i].alias_info();
  if (info == nullptr || !info->isWrite()) return std::nullopt;
  for (size_t j = 0; j < schema.arguments().size(); ++j) {
    const c10::AliasInfo* other = schema.arguments()[j].alias_info();
    if (other != nullptr && other->beforeSets() == info->beforeSets()) return j;
  }
  return std::nullopt;
}

void RunOnFakeDevice(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  ++operator_calls;
  if (WaitsForDevice(op)) ++waits;
  const c10::FunctionSchema& schema = op.schema();
  const size_t num_args = schema.arguments().size();
  const std::vector<IValue> args(stack->end() - num_args, stack->end());
  const c10::Device device = CommonDevice(op, args);
  FakeStreams::Get().Do(CurrentStream(device));

  HostViews views;
  stack->erase(stack->end() - num_args, stack->end());
  for (const IValue& arg : args) stack->push_back(ToHost(arg, views));
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    op.callBoxed(stack);
  }
  views.FollowSizes();

  const size_t first = stack->size() - schema.returns().size();
  for (size_t i = 0; i < schema.returns().size(); ++i) {
    IValue& result = (*stack)[first + i];
    if (const auto argument = ArgumentReturned(schema, i)) {
      result = args[*argument];
    } else if (result.isTensor()) {
      result = views.OnDevice(result.toTensor(), device);
    } else if (result.isTensorList()) {
      c10::List<Tensor> list;
      for (const Tensor& tensor : result.toTensorVector())
        list.push_back(views.OnDevice(tensor, device));
      result = list;
    }
  }
}

c10::Device DeviceOr(std::optional<c10::Device> device) {
  const c10::Device current = c10::impl::VirtualGuardImpl(c10::kPrivateUse1).getDevice();
  return device && device->has_index() ? *device : current;
}

constexpr c10::DispatchKeySet kFakeKey(c10::DispatchKey::PrivateUse1);

Tensor Empty(at::IntArrayRef sizes, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
             std::optional<c10::Device> device, std::optional<bool>,
             std::optional<at::MemoryFormat> format) {
  const c10::DeviceGuard guard(DeviceOr(device));
  return at::detail::empty_generic(sizes, c10::GetAllocator(c10::kPrivateUse1), kFakeKey,
                                   c10::dtype_or_default(dtype), format);
}

Tensor EmptyStrided(at::IntArrayRef sizes, at::IntArrayRef strides,
                    std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                    std::optional<c10::Device> device, std::optional<bool>) {
  const c10::DeviceGuard guard(DeviceOr(device));
  return at::detail::empty_strided_generic(sizes, strides, c10::GetAllocator(c10::kPrivateUse1),
                                           kFakeKey, c10::dtype_or_default(dtype));
}

// A copy that its stream may make later. Host memory is kept for it, as libtorch's allocators of
// page-locked memory do; the device's is not.
bool Defer(const Tensor& to, const Tensor& from) {
  const Tensor& host = to.is_cpu() ? to : from;
  const c10::Stream stream = CurrentStream(to.is_cpu() ? from.device() : to.device());
  if (!FakeStreams::Get().Lazy(stream) || !host.is_cpu() || !host.is_pinned() ||
      to.scalar_type() != from.scalar_type() || !to.is_contiguous() || !from.is_contiguous() ||
      to.sizes() != from.sizes())
    return false;
  const auto address = [](const Tensor& x) {
    void* data = const_cast<void*>(x.const_data_ptr());
    return x.is_cpu() ? data : FakeMemory::Get().HostAddress(data);
  };
  FakeStreams::Get().Defer(stream, [host, to = address(to), from = address(from),
                                    bytes = to.nbytes()] { std::memcpy(to, from, bytes); });
  return true;
}

// Between any two devices, or host and device.
Tensor& Copy(Tensor& self, const Tensor& from, bool non_blocking) {
  ++operator_calls;
  if (!non_blocking && self.device().type() != from.device().type()) ++waits;
  if (non_blocking && Defer(self, from)) return self;
  FakeStreams::Get().Do(CurrentStream(self.is_cpu() ? from.device() : self.device()));
  HostViews views;
  const auto view = [&](const Tensor& t) { return t.is_privateuseone() ? views.Of(t) : t; };
  const at::AutoDispatchBelowADInplaceOrView below;
  view(self).copy_(view(from), non_blocking);
  return self;
}

Tensor& SetStorage(Tensor& self, at::Storage source, int64_t offset, at::IntArrayRef sizes,
                   at::IntArrayRef strides) {
  at::native::checkSetStorage(self, source, offset, sizes, strides);
  c10::TensorImpl* impl = self.unsafeGetTensorImpl();
  impl->set_storage_offset(offset);
  if (strides.data() == nullptr || strides.empty())
    impl->set_sizes_contiguous(sizes);
  else
    impl->set_sizes_and_strides(sizes, strides);
  const size_t bytes =
      at::detail::computeStorageNbytes(self.sizes(), self.strides(), self.itemsize(), offset);
  TORCH_CHECK(self.numel() == 0 || bytes <= self.storage().nbytes(), "set_ to a storage of ",
              self.storage().nbytes(), " bytes of what takes ", bytes);
  return self;
}

Tensor& SetWholeStorage(Tensor& self, at::Storage source) {
  const auto elements = static_cast<int64_t>(source.nbytes() / self.itemsize());
  return SetStorage(self, std::move(source), 0, {elements}, {});
}

Tensor& SetTensor(Tensor& self, const Tensor& source) {
  return SetStorage(self, source.storage(), source.storage_offset(), source.sizes(),
                    source.strides());
}

Tensor& SetNothing(Tensor& self) {
  const Tensor nothing = Empty({0}, self.scalar_type(), {}, self.device(), {}, {});
  return SetTensor(self, nothing);
}

void RecordStream(Tensor&, c10::Stream) {}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&RunOnFakeDevice>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &Empty);
  m.impl("empty_strided", &EmptyStrided);
  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("view", &at::native::view);
  m.impl("_reshape_alias", &at::native::_reshape_alias);
  m.impl("copy_", &Copy);
  m.impl("set_.source_Storage_storage_offset", &SetStorage);
  m.impl("set_.source_Storage", &SetWholeStorage);
  m.impl("set_.source_Tensor", &SetTensor);
  m.impl("set_", &SetNothing);
  m.impl("record_stream", &RecordStream);
}

}  // namespace

size_t FakeOperatorCalls() { return operator_calls; }
size_t FakeDeviceWaits() { return waits; }
void CountFakeDeviceWait() { ++waits; }

}  // namespace shoal
