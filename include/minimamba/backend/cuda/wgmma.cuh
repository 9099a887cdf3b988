R"cuda(
// Instructions of Hopper for products_wide.cuh and products_some.cuh: barriers in shared memory, copies of boxes of
// matrices, and wgmma.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
// A tensor and the size of its boxes: made by the driver.
struct __align__(64) TensorMap {
  u8 bytes[128];
};
__device__ inline u32 shared_address(const void* shared) { return (u32)__cvta_generic_to_shared(shared); }
__device__ inline void make_barrier(u64* barrier, u32 count) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}
__device__ inline void arrive(u64* barrier) {
  asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
__device__ inline void wait_for(u64* barrier, u32 parity) {
  asm volatile(
      "{\n.reg .pred done;\nagain:\n"
      "mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n@done bra over;\nbra again;\nover:\n}" ::"r"(
          shared_address(barrier)),
      "r"(parity)
      : "memory");
}
// A box is copied to shared memory, with zeros beyond the edges of the tensor. A barrier waits for so many bytes.
__device__ inline void expect_bytes(u64* barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}
__device__ inline void copy_box(void* shared, const TensorMap& from, u32 col, u32 row, u64* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
          shared_address(shared)),
      "l"(&from), "r"(col), "r"(row), "r"(shared_address(barrier))
      : "memory");
}
// Of the shared memory that the host has asked for.
__device__ inline u32 dynamic_bytes() {
  u32 bytes;
  asm("mov.u32 %0, %%dynamic_smem_size;" : "=r"(bytes));
  return bytes;
}
// Threads of a warpgroup wait for each other.
__device__ inline void meet_warpgroup(u32 warpgroup) {
  asm volatile("bar.sync %0, 128;" ::"r"(warpgroup + 1) : "memory");
}
__device__ inline void begin_wgmma() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void end_wgmma() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Sums of 64 outputs of WIDTH rows: those of a lane.
template <int WIDTH>
struct Sums {
  float at[WIDTH / 2];
  // Waits until at most PENDING groups of instructions go on, of which none uses these sums.
  template <int PENDING>
  __device__ void wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
#pragma unroll
    for (int i = 0; i < WIDTH / 2; ++i) asm volatile("" : "+f"(at[i])::"memory");
  }
};
#define MINIMAMBA_SUMS_OF_8(s, i)                                                                             \
  "+f"(s[i]), "+f"(s[i + 1]), "+f"(s[i + 2]), "+f"(s[i + 3]), "+f"(s[i + 4]), "+f"(s[i + 5]), "+f"(s[i + 6]), \
      "+f"(s[i + 7])
// sums = (keep ? sums : 0) + a b for 16 values
__device__ inline void multiply_wide(Sums<64>& sums, const uint4& a, u64 b, u32 keep) {
  asm volatile(
      "{\n.reg .pred keep;\nsetp.ne.b32 keep, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,"
      "%30,%31}, {%32,%33,%34,%35}, %36, keep, 1, 1, 0;\n}"
      : MINIMAMBA_SUMS_OF_8(sums.at, 0), MINIMAMBA_SUMS_OF_8(sums.at, 8), MINIMAMBA_SUMS_OF_8(sums.at, 16),
        MINIMAMBA_SUMS_OF_8(sums.at, 24)
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "l"(b), "r"(keep));
}
__device__ inline void multiply_wide(Sums<128>& sums, const uint4& a, u64 b, u32 keep) {
  asm volatile(
      "{\n.reg .pred keep;\nsetp.ne.b32 keep, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,"
      "%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,"
      "%58,%59,%60,%61,%62,%63}, {%64,%65,%66,%67}, %68, keep, 1, 1, 0;\n}"
      : MINIMAMBA_SUMS_OF_8(sums.at, 0), MINIMAMBA_SUMS_OF_8(sums.at, 8), MINIMAMBA_SUMS_OF_8(sums.at, 16),
        MINIMAMBA_SUMS_OF_8(sums.at, 24), MINIMAMBA_SUMS_OF_8(sums.at, 32), MINIMAMBA_SUMS_OF_8(sums.at, 40),
        MINIMAMBA_SUMS_OF_8(sums.at, 48), MINIMAMBA_SUMS_OF_8(sums.at, 56)
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "l"(b), "r"(keep));
}
__device__ inline void multiply_wide(Sums<32>& sums, const uint4& a, u64 b, u32 keep) {
  asm volatile(
      "{\n.reg .pred keep;\nsetp.ne.b32 keep, %21, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}, {%16,%17,%18,%19}, %20, keep, 1, 1, 0;\n}"
      : MINIMAMBA_SUMS_OF_8(sums.at, 0), MINIMAMBA_SUMS_OF_8(sums.at, 8)
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "l"(b), "r"(keep));
}
#endif
)cuda"
