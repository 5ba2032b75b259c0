// Selecting channels of one CPU level; included like dot_body.inl, after epilogue_body.inl.

// Lanes are positions, so that every term of a shuffle, mostly a single channel, still fills them.
void join(const WordColumn* columns, const Term* terms, int64_t term_count, WordColumn& out) {
  constexpr int64_t kVectorsOut = kSelectPositions / kLanes;
  WordVector joined[kVectorsOut] = {};
  for (const Term* term = terms; term < terms + term_count; ++term) {
    const auto add = [&](auto shift) {
      for (int64_t i = 0; i < kVectorsOut; ++i)
        joined[i] |=
            shift(load_vector<WordVector>(columns[term->source] + i * kLanes)) & term->mask;
    };
    if (term->left_shift >= 0)
      add([&](WordVector words) { return words << static_cast<Word>(term->left_shift); });
    else
      add([&](WordVector words) { return words >> static_cast<Word>(-term->left_shift); });
  }
  for (int64_t i = 0; i < kVectorsOut; ++i) store_vector(out + i * kLanes, joined[i]);
}

constexpr SelectKernels kSelectKernels = {join};
