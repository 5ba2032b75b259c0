// How fast Hopper's binary tensor cores are at most: loops of one instruction on fixed operands.
//
//   BGMMA  wgmma.mma_async m64nNk256   one warpgroup; B in shared memory, A there or in registers
//   BMMA   mma.sync m16n8k256          one warp; both in registers
//
// Both add popcount(a & b) of 256 bits to int32 sums. The operands are random, since zeros would
// draw less power and run at higher clocks, and the sums are compared with those of the host, since
// the rate of an instruction that computes something else would say nothing. One block on each
// multiprocessor. gpu/ceilings.py compiles this for sm_90a and reads the line printed for each
// loop:
//
//   <instruction> <where A is> <warps> <1 if the sums are right> <products of a block> <its cycles>
//   <milliseconds of each launch>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace {

constexpr int kRuns = 11;
constexpr int64_t kBlockMacs = int64_t{1} << 40;  // 19 ms at 32768 a cycle and 1.8 GHz

constexpr int kStepWords = 8;  // 256 bits, which each instruction multiplies
constexpr int kWarp = 32;
constexpr int kWarpgroup = 4 * kWarp;

#define CHECK(call) check(call, #call, __LINE__)

void check(cudaError_t error, const char* call, int line) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "ceilings.cu:%d: %s: %s\n", line, call, cudaGetErrorString(error));
  std::exit(1);
}

// --- operands -----------------------------------------------------------------------------------

constexpr uint32_t kA = 1, kB = 2;

// Word `index` of a row of A or B: random bits.
__host__ __device__ uint32_t operand(uint32_t matrix, uint32_t row, uint32_t index) {
  uint32_t x = (matrix * 1024 + row) * kStepWords + index;
  x = (x ^ x >> 16) * 0x7feb352d;
  x = (x ^ x >> 15) * 0x846ca68b;
  return x ^ x >> 16;
}

int popcount_of_and(uint32_t row, uint32_t column) {
  int count = 0;
  for (uint32_t i = 0; i < kStepWords; ++i)
    count += __builtin_popcount(operand(kA, row, i) & operand(kB, column, i));
  return count;
}

// --- BGMMA --------------------------------------------------------------------------------------

// A matrix in shared memory, unswizzled: blocks of 8 rows x 16 bytes, first those of the rows.
template <int kRows>
struct alignas(128) Tile {
  static constexpr int kHalfWords = kStepWords / 2;
  static constexpr uint64_t kRowBlockBytes = 8 * 16;  // to the next 8 rows
  static constexpr uint64_t kHalfBytes = kRows * 16;  // to the next 128 bits of the same rows

  uint32_t words[2][kRows][kHalfWords];

  __device__ void fill(uint32_t matrix) {
    for (int i = threadIdx.x; i < kRows * kStepWords; i += blockDim.x) {
      const int row = i / kStepWords, word = i % kStepWords;
      words[word / kHalfWords][row][word % kHalfWords] = operand(matrix, row, word);
    }
  }

  // What wgmma calls a matrix descriptor.
  __device__ uint64_t descriptor() const {
    const uint64_t address = __cvta_generic_to_shared(words);
    return address >> 4 | kHalfBytes >> 4 << 16 | kRowBlockBytes >> 4 << 32;
  }
};

__device__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Until at most `kPending` of the committed groups run.
template <int kPending>
__device__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

#define SUMS_4(d, i) "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3])
#define SUMS_16(d, i) SUMS_4(d, i), SUMS_4(d, i + 4), SUMS_4(d, i + 8), SUMS_4(d, i + 12)
#define SUMS_64(d, i) SUMS_16(d, i), SUMS_16(d, i + 16), SUMS_16(d, i + 32), SUMS_16(d, i + 48)

#define NAMES_64                                                                               \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, " \
  "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, " \
  "%38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, " \
  "%56, %57, %58, %59, %60, %61, %62, %63"
#define NAMES_128                                                                                \
  NAMES_64                                                                                       \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, " \
  "%82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, "   \
  "%100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, "   \
  "%115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

#define WGMMA(n, sums, a, b)                  \
  "{.reg .pred add; setp.eq.b32 add, 0, 0;\n" \
  "wgmma.mma_async.sync.aligned.m64n" #n "k256.s32.b1.b1.and.popc {" sums "}, " a ", " b ", add;}"

// d += popcount(a & b), begun only: `d` may be read after a wait.
__device__ void wgmma(int32_t (&d)[64], uint64_t a, uint64_t b) {
  asm volatile(WGMMA(128, NAMES_64, "%64", "%65") : SUMS_64(d, 0) : "l"(a), "l"(b));
}

__device__ void wgmma(int32_t (&d)[128], uint64_t a, uint64_t b) {
  asm volatile(WGMMA(256, NAMES_128, "%128", "%129")
               : SUMS_64(d, 0), SUMS_64(d, 64)
               : "l"(a), "l"(b));
}

__device__ void wgmma(int32_t (&d)[64], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(WGMMA(128, NAMES_64, "{%64, %65, %66, %67}", "%68")
               : SUMS_64(d, 0)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

__device__ void wgmma(int32_t (&d)[128], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(WGMMA(256, NAMES_128, "{%128, %129, %130, %131}", "%132")
               : SUMS_64(d, 0), SUMS_64(d, 64)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

// Repeats d += A B in every warpgroup, with the next steps begun before the last are done; writes
// the sums of the first.
template <int kN, bool kRegisters, int kWarpgroups>
struct Bgmma {
  static constexpr int kRows = 64;
  static constexpr int kColumns = kN;
  static constexpr int kThreads = kWarpgroups * kWarpgroup;
  static constexpr int kSteps = 4;  // of an iteration
  static constexpr int64_t kMacs = int64_t{kWarpgroups} * kSteps * kRows * kN * kStepWords * 32;

  static __device__ int64_t run(int iterations, int32_t* sums) {
    __shared__ Tile<kRows> a_tile;
    __shared__ Tile<kN> b_tile;
    a_tile.fill(kA);
    b_tile.fill(kB);
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();

    const int lane = threadIdx.x % kWarp;
    const int row = threadIdx.x / kWarp % 4 * 16 + lane / 4, word = lane % 4;
    const uint32_t a[4] = {operand(kA, row, word), operand(kA, row + 8, word),
                           operand(kA, row, word + 4), operand(kA, row + 8, word + 4)};
    const uint64_t a_descriptor = a_tile.descriptor(), b = b_tile.descriptor();
    int32_t d[kN / 2] = {};

    const int64_t start = clock64();
#pragma unroll 1
    for (int i = 0; i < iterations; ++i) {
      wgmma_fence();
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        if constexpr (kRegisters)
          wgmma(d, a, b);
        else
          wgmma(d, a_descriptor, b);
      }
      wgmma_commit();
      wgmma_wait<1>();
    }
    wgmma_wait<0>();
    const int64_t cycles = clock64() - start;

    if (blockIdx.x == 0 && threadIdx.x < kWarpgroup) {
#pragma unroll
      for (int i = 0; i < kN / 2; ++i) {
        const int column = lane % 4 * 2 + i % 2 + i / 4 * 8;
        sums[(row + i % 4 / 2 * 8) * kN + column] = d[i];
      }
    }
    return cycles;
  }
};

// --- BMMA ---------------------------------------------------------------------------------------

__device__ void mma(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : SUMS_4(d, 0)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Repeats d += A B in every warp, in tiles that do not wait for each other; writes those of one.
template <int kTiles, int kWarps>
struct Bmma {
  static constexpr int kRows = 16;
  static constexpr int kColumns = 8 * kTiles;
  static constexpr int kThreads = kWarps * kWarp;
  static constexpr int kSteps = 1;
  static constexpr int64_t kMacs = int64_t{kWarps} * kRows * kColumns * kStepWords * 32;

  static __device__ int64_t run(int iterations, int32_t* sums) {
    const int lane = threadIdx.x % kWarp, group = lane / 4, word = lane % 4;
    const uint32_t a[4] = {operand(kA, group, word), operand(kA, group + 8, word),
                           operand(kA, group, word + 4), operand(kA, group + 8, word + 4)};
    uint32_t b[kTiles][2];
    for (int t = 0; t < kTiles; ++t)
      for (int half = 0; half < 2; ++half) b[t][half] = operand(kB, t * 8 + group, half * 4 + word);
    int32_t d[kTiles][4] = {};

    const int64_t start = clock64();
#pragma unroll 1
    for (int i = 0; i < iterations; ++i)
#pragma unroll
      for (int t = 0; t < kTiles; ++t) mma(d[t], a, b[t]);
    const int64_t cycles = clock64() - start;

    if (blockIdx.x == 0 && threadIdx.x < kWarp)
      for (int t = 0; t < kTiles; ++t)
        for (int i = 0; i < 4; ++i)
          sums[(group + i / 2 * 8) * kColumns + t * 8 + lane % 4 * 2 + i % 2] = d[t][i];
    return cycles;
  }
};

// --- measuring ----------------------------------------------------------------------------------

template <typename Loop>
__global__ void __launch_bounds__(Loop::kThreads)
    repeat(int iterations, int32_t* sums, int64_t* cycles) {
  const int64_t taken = Loop::run(iterations, sums);
  if (blockIdx.x == 0 && threadIdx.x == 0) *cycles = taken;
}

template <typename Loop>
bool correct(const int32_t* device_sums, int iterations) {
  std::vector<int32_t> sums(Loop::kRows * Loop::kColumns);
  CHECK(cudaMemcpy(sums.data(), device_sums, sums.size() * 4, cudaMemcpyDeviceToHost));
  for (int row = 0; row < Loop::kRows; ++row)
    for (int column = 0; column < Loop::kColumns; ++column)
      if (sums[row * Loop::kColumns + column] !=
          iterations * Loop::kSteps * popcount_of_and(row, column))
        return false;
  return true;
}

template <typename Loop>
void measure(const char* name, int multiprocessors) {
  const int iterations = static_cast<int>(kBlockMacs / Loop::kMacs);
  int32_t* sums;
  int64_t* cycles;
  cudaEvent_t start, stop;
  CHECK(cudaMalloc(&sums, Loop::kRows * Loop::kColumns * sizeof *sums));
  CHECK(cudaMalloc(&cycles, sizeof *cycles));
  CHECK(cudaEventCreate(&start));
  CHECK(cudaEventCreate(&stop));

  float milliseconds[1 + kRuns];  // the first warms up
  for (float& run : milliseconds) {
    CHECK(cudaEventRecord(start));
    repeat<Loop><<<multiprocessors, Loop::kThreads>>>(iterations, sums, cycles);
    CHECK(cudaGetLastError());
    CHECK(cudaEventRecord(stop));
    CHECK(cudaEventSynchronize(stop));
    CHECK(cudaEventElapsedTime(&run, start, stop));
  }

  int64_t last_cycles;
  CHECK(cudaMemcpy(&last_cycles, cycles, sizeof *cycles, cudaMemcpyDeviceToHost));
  std::printf("%s %d %d %lld %lld", name, Loop::kThreads / kWarp, correct<Loop>(sums, iterations),
              static_cast<long long>(iterations * Loop::kMacs),
              static_cast<long long>(last_cycles));
  for (int i = 1; i <= kRuns; ++i) std::printf(" %.6f", milliseconds[i]);
  std::printf("\n");
  CHECK(cudaFree(sums));
  CHECK(cudaFree(cycles));
  CHECK(cudaEventDestroy(start));
  CHECK(cudaEventDestroy(stop));
}

}  // namespace

int main() {
  int multiprocessors;
  CHECK(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0));
  measure<Bgmma<128, false, 1>>("BGMMA.64x128x256 shared", multiprocessors);
  measure<Bgmma<128, false, 2>>("BGMMA.64x128x256 shared", multiprocessors);
  measure<Bgmma<128, true, 1>>("BGMMA.64x128x256 registers", multiprocessors);
  measure<Bgmma<128, true, 2>>("BGMMA.64x128x256 registers", multiprocessors);
  measure<Bgmma<256, false, 1>>("BGMMA.64x256x256 shared", multiprocessors);
  measure<Bgmma<256, false, 2>>("BGMMA.64x256x256 shared", multiprocessors);
  measure<Bgmma<256, true, 1>>("BGMMA.64x256x256 registers", multiprocessors);
  measure<Bgmma<256, true, 2>>("BGMMA.64x256x256 registers", multiprocessors);
  measure<Bmma<8, 4>>("BMMA.168256 registers", multiprocessors);
  measure<Bmma<8, 8>>("BMMA.168256 registers", multiprocessors);
  measure<Bmma<8, 16>>("BMMA.168256 registers", multiprocessors);
}
