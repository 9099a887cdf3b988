R"cuda(
// wgmma of operands that are both in shared memory: sums = (keep ? sums : 0) + a b for 16 values of k. ACROSS: the rows
// of an operand there are those of k, or else its columns are.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
template <int A_ACROSS, int B_ACROSS>
__device__ inline void multiply_tiles(Sums<256>& sums, u64 a, u64 b, u32 keep = 1) {
  asm volatile(
      "{\n.reg .pred keep;\nsetp.ne.b32 keep, %130, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
      "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,"
      "%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,"
      "%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,"
      "%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,"
      "%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,"
      "%121,%122,%123,%124,%125,%126,%127"
      "}, %128, %129, keep, 1, 1, %131, %132;\n}"
      : MINIMAMBA_SUMS_OF_8(sums.at, 0), MINIMAMBA_SUMS_OF_8(sums.at, 8), MINIMAMBA_SUMS_OF_8(sums.at, 16),
        MINIMAMBA_SUMS_OF_8(sums.at, 24), MINIMAMBA_SUMS_OF_8(sums.at, 32), MINIMAMBA_SUMS_OF_8(sums.at, 40),
        MINIMAMBA_SUMS_OF_8(sums.at, 48), MINIMAMBA_SUMS_OF_8(sums.at, 56), MINIMAMBA_SUMS_OF_8(sums.at, 64),
        MINIMAMBA_SUMS_OF_8(sums.at, 72), MINIMAMBA_SUMS_OF_8(sums.at, 80), MINIMAMBA_SUMS_OF_8(sums.at, 88),
        MINIMAMBA_SUMS_OF_8(sums.at, 96), MINIMAMBA_SUMS_OF_8(sums.at, 104), MINIMAMBA_SUMS_OF_8(sums.at, 112),
        MINIMAMBA_SUMS_OF_8(sums.at, 120)
      : "l"(a), "l"(b), "r"(keep), "n"(A_ACROSS), "n"(B_ACROSS));
}
template <int A_ACROSS, int B_ACROSS>
__device__ inline void multiply_tiles(Sums<192>& sums, u64 a, u64 b, u32 keep = 1) {
  asm volatile(
      "{\n.reg .pred keep;\nsetp.ne.b32 keep, %98, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 {"
      "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,"
      "%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,"
      "%56,%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,"
      "%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
      "}, %96, %97, keep, 1, 1, %99, %100;\n}"
      : MINIMAMBA_SUMS_OF_8(sums.at, 0), MINIMAMBA_SUMS_OF_8(sums.at, 8), MINIMAMBA_SUMS_OF_8(sums.at, 16),
        MINIMAMBA_SUMS_OF_8(sums.at, 24), MINIMAMBA_SUMS_OF_8(sums.at, 32), MINIMAMBA_SUMS_OF_8(sums.at, 40),
        MINIMAMBA_SUMS_OF_8(sums.at, 48), MINIMAMBA_SUMS_OF_8(sums.at, 56), MINIMAMBA_SUMS_OF_8(sums.at, 64),
        MINIMAMBA_SUMS_OF_8(sums.at, 72), MINIMAMBA_SUMS_OF_8(sums.at, 80), MINIMAMBA_SUMS_OF_8(sums.at, 88)
      : "l"(a), "l"(b), "r"(keep), "n"(A_ACROSS), "n"(B_ACROSS));
}
template <int A_ACROSS, int B_ACROSS>
__device__ inline void multiply_tiles(Sums<128>& sums, u64 a, u64 b, u32 keep = 1) {
  asm volatile(
      "{\n.reg .pred keep;\nsetp.ne.b32 keep, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
      "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,"
      "%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,"
      "%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
      "}, %64, %65, keep, 1, 1, %67, %68;\n}"
      : MINIMAMBA_SUMS_OF_8(sums.at, 0), MINIMAMBA_SUMS_OF_8(sums.at, 8), MINIMAMBA_SUMS_OF_8(sums.at, 16),
        MINIMAMBA_SUMS_OF_8(sums.at, 24), MINIMAMBA_SUMS_OF_8(sums.at, 32), MINIMAMBA_SUMS_OF_8(sums.at, 40),
        MINIMAMBA_SUMS_OF_8(sums.at, 48), MINIMAMBA_SUMS_OF_8(sums.at, 56)
      : "l"(a), "l"(b), "r"(keep), "n"(A_ACROSS), "n"(B_ACROSS));
}
template <int A_ACROSS, int B_ACROSS>
__device__ inline void multiply_tiles(Sums<64>& sums, u64 a, u64 b, u32 keep = 1) {
  asm volatile(
      "{\n.reg .pred keep;\nsetp.ne.b32 keep, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
      "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,"
      "%27,%28,%29,%30,%31"
      "}, %32, %33, keep, 1, 1, %35, %36;\n}"
      : MINIMAMBA_SUMS_OF_8(sums.at, 0), MINIMAMBA_SUMS_OF_8(sums.at, 8), MINIMAMBA_SUMS_OF_8(sums.at, 16),
        MINIMAMBA_SUMS_OF_8(sums.at, 24)
      : "l"(a), "l"(b), "r"(keep), "n"(A_ACROSS), "n"(B_ACROSS));
}
#endif
)cuda"
