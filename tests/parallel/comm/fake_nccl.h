// NCCL's calls over rank threads and fake devices (fake_nccl.cc), in the place of the library.
//
// As strict as non-blocking communicators allow: a call is in progress until all ranks of its
// communicator have made theirs, and another call meanwhile is an error. As careless: different
// calls never end, and of different sizes the smaller part is moved.
#pragma once

namespace shoal {

// From now on every communicator reports an error of its network.
void BreakFakeNccl();
void MendFakeNccl();

}  // namespace shoal
