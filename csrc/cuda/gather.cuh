// Where the rows of the left factor of a matrix product come from: a convolution as a product of
// one row per output pixel, without these rows ever being written to memory.
//
// Row m is the window of output pixel m: the words of its taps side by side, in the order of the
// weight (tap y, tap x, word of the group's channels). A linear layer is a convolution of maps of
// one pixel with a kernel of one tap. Kernels copy rows by chunks of 4, 8 or 16 bytes that lie in
// one tap, slab by slab of the row; taps in the padding and what is past the row's end are zeros.
#pragma once

#include "cuda/epilogue.cuh"

namespace bnn_ext::cuda {

// The window of one output pixel: the input pixel under its first tap, which may lie in the
// padding, and the word of the group's first channel there.
struct alignas(16) WindowStart {
  const char* address;
  int32_t y;
  int32_t x;
};

// A place in a row, by the tap's offset in the map and the bytes from the window's start.
struct TapCursor {
  int64_t offset;
  int32_t y;
  int32_t x;
  int32_t byte;  // in the tap
};

// Computed once on the host, so that kernels need no division while they advance.
struct Gather {
  const Word* input;
  Window window;
  int64_t rows;         // output pixels of all maps
  int64_t pixel_bytes;  // of all channels of an input pixel
  int64_t line_bytes;   // of a row of input pixels
  int32_t tap_bytes;    // of a group's channels of an input pixel

  // What a cursor gains by a whole slab, and by each carry on the way.
  TapCursor slab;
  int64_t tap_carry;   // offset: to the first word of the next tap
  int64_t line_carry;  // offset: to the first tap of the next line
  int32_t line_span;   // x of the first tap past a line
  int32_t end;         // y of the first line past the window

  BNN_HOST_DEVICE WindowStart window_start(int64_t row, int64_t group) const {
    const Pixel at = window.output_pixel(row);
    const int64_t y = at.y * window.stride.y - window.padding.y;
    const int64_t x = at.x * window.stride.x - window.padding.x;
    const int64_t bytes =
        (at.n * window.input.y + y) * line_bytes + x * pixel_bytes + group * tap_bytes;
    return {reinterpret_cast<const char*>(input) + bytes, static_cast<int32_t>(y),
            static_cast<int32_t>(x)};
  }

  // The place that is `bytes` after the beginning of a row.
  BNN_HOST_DEVICE TapCursor at(int64_t bytes) const {
    const int64_t tap = bytes / tap_bytes;
    const int64_t tap_y = tap / window.kernel.x, tap_x = tap % window.kernel.x;
    TapCursor cursor;
    cursor.byte = static_cast<int32_t>(bytes % tap_bytes);
    cursor.y = static_cast<int32_t>(tap_y * window.dilation.y);
    cursor.x = static_cast<int32_t>(tap_x * window.dilation.x);
    cursor.offset = cursor.y * line_bytes + cursor.x * pixel_bytes + cursor.byte;
    return cursor;
  }

  // One slab on: an addition with at most one carry from bytes to taps and from taps to lines.
  BNN_HOST_DEVICE void advance(TapCursor& cursor) const {
    cursor.offset += slab.offset;
    cursor.y += slab.y;
    cursor.x += slab.x;
    cursor.byte += slab.byte;
    if (cursor.byte >= tap_bytes) {
      cursor.byte -= tap_bytes;
      cursor.x += static_cast<int32_t>(window.dilation.x);
      cursor.offset += tap_carry;
    }
    if (cursor.x >= line_span) {
      cursor.x -= line_span;
      cursor.y += static_cast<int32_t>(window.dilation.y);
      cursor.offset += line_carry;
    }
  }

  // Whether the chunk at the cursor of the row of this window is there; else it is zeros. One
  // comparison covers both ends of an axis. No short circuit: branches would cost more.
  BNN_HOST_DEVICE bool valid(const WindowStart& start, const TapCursor& cursor) const {
    const auto below = [](int32_t value, int64_t size) {
      return static_cast<uint32_t>(value) < static_cast<uint32_t>(size);
    };
    return (cursor.y < end) & below(start.y + cursor.y, window.input.y) &
           below(start.x + cursor.x, window.input.x);
  }

  // The taps of a window that lie in the map.
  BNN_HOST_DEVICE Taps taps(int32_t y, int32_t x) const {
    Taps taps;
    valid_taps(y, static_cast<int32_t>(window.input.y), static_cast<int32_t>(window.kernel.y),
               static_cast<int32_t>(window.dilation.y), taps.top, taps.bottom);
    valid_taps(x, static_cast<int32_t>(window.input.x), static_cast<int32_t>(window.kernel.x),
               static_cast<int32_t>(window.dilation.x), taps.left, taps.right);
    return taps;
  }
};

// The widest chunks that lie in one tap, at addresses that are multiples of them: 4, 8 or 16 bytes.
inline int chunk_bytes(const Conv2d& conv) {
  const uintptr_t all = reinterpret_cast<uintptr_t>(conv.input) |
                        reinterpret_cast<uintptr_t>(conv.weight) |
                        word_count(conv.inputs / conv.groups) * sizeof(Word);
  return all % 16 == 0 ? 16 : all % 8 == 0 ? 8 : 4;
}

// Whether rows can be gathered: there are channels, those of groups begin at words, on both sides,
// and places in the map fit into int32 with room to spare.
inline bool can_gather(const Conv2d& conv) {
  const Window& w = conv.window;
  const auto small = [](int64_t size, int64_t kernel, int64_t stride, int64_t padding,
                        int64_t dilation) {
    constexpr int64_t most = int64_t{1} << 28;
    return size < most && kernel < most && stride < most && padding < most && dilation < most &&
           kernel * dilation < most;
  };
  const bool whole = conv.groups == 1 || (conv.inputs / conv.groups % kWordBits == 0 &&
                                          conv.outputs / conv.groups % kWordBits == 0);
  return conv.inputs > 0 && whole &&
         small(w.input.y, w.kernel.y, w.stride.y, w.padding.y, w.dilation.y) &&
         small(w.input.x, w.kernel.x, w.stride.x, w.padding.x, w.dilation.x);
}

inline Gather make_gather(const Conv2d& conv, int64_t rows, int slab_bytes) {
  const Window& w = conv.window;
  Gather gather = {};
  gather.input = conv.input;
  gather.window = w;
  gather.rows = rows;
  gather.pixel_bytes = word_count(conv.inputs) * sizeof(Word);
  gather.line_bytes = w.input.x * gather.pixel_bytes;
  gather.tap_bytes = static_cast<int32_t>(word_count(conv.inputs / conv.groups) * sizeof(Word));
  gather.line_span = static_cast<int32_t>(w.kernel.x * w.dilation.x);
  gather.end = static_cast<int32_t>(w.kernel.y * w.dilation.y);
  gather.tap_carry = w.dilation.x * gather.pixel_bytes - gather.tap_bytes;
  gather.line_carry = w.dilation.y * gather.line_bytes - gather.line_span * gather.pixel_bytes;
  gather.slab = gather.at(slab_bytes);
  return gather;
}

inline Correction make_correction(const Conv2d& conv, const int32_t* popcounts) {
  const Window& w = conv.window;
  const bool padded = w.padding.y > 0 || w.padding.x > 0;
  return {popcounts,
          conv.outputs,
          static_cast<int32_t>(w.kernel.y),
          static_cast<int32_t>(w.kernel.x),
          static_cast<int32_t>(conv.inputs / conv.groups),
          padded ? static_cast<int32_t>(conv.pad_value) : -1};
}

}  // namespace bnn_ext::cuda
