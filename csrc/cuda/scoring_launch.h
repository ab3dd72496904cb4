// How the kernels beside the pairs of a log-sum-exp are launched.
#pragma once

#include "jensen.h"
#include "two.h"

namespace fused_mi {

struct Contributing {
  Jensen of;                      // its masks, mixtures and counts
  uint8_t* samples = nullptr;     // (mixtures, N, S)
  uint8_t* components = nullptr;  // (mixtures, M, S)
  int* irregular = nullptr;       // (mixtures,): become 0
  View log_weights;               // (M, 1, 1), where there are any
  double offset = 0;              // added to each of them
  Two<float>* halves = nullptr;   // (M,) of the sums, or
  double* weights = nullptr;      // (M,)
};

constexpr int kRowsOfState = 5;  // numbers of a sample, see Logsumexp
constexpr int kTerms = 6;  // total, in q, in g, the assignment, the sum of these three, in k

struct Scores {
  const double* rows = nullptr;  // (D, 5, N)
  Numbers total, terms;          // (), (6,); where `each`, (D N,), (6, D N)
  int D = 0, N = 0;
  double log_partners = 0, factor = 1;  // of the means, or of each
  bool each = false, weighted = false;  // weighted: components have weights of their own

  // backward
  Numbers of_total, of_terms;  // as total and terms; either may be absent
  double* upstream = nullptr;  // (D, 5, N), or (D, 5, 1) where not `each`
};

struct SumWeights {
  Numbers weights;  // (rows, columns), `row` elements from one row to the next
  int64_t row = 0;
  int rows = 0, columns = 0;
  bool over_rows = false;           // which role is summed
  const uint8_t* active = nullptr;  // of what is summed (.., S); or all of it
  int64_t S = 1;
  double* sums = nullptr;  // of what is kept (.., S), written
  bool add = false;        // on top of what is there
  const int* irregular = nullptr;  // where not nullptr, 0: nothing to do
};

struct AddGradients {
  const float* parts = nullptr;  // (splits, size)
  View to;                       // (rows, S, E), from row `start` on contiguous
  int64_t start = 0, S = 0, E = 0, size = 0;
  int splits = 0;
  bool add = false;
  const int* irregular = nullptr;  // as above
};

// Each returns nullptr, or what is wrong.
const char* launch_contributing(const Contributing& in, void* stream);
const char* launch_terms(const Scores& in, void* stream);
const char* launch_upstream(const Scores& in, void* stream);
const char* launch_sum_weights(const SumWeights& in, void* stream);
const char* launch_add_gradients(const AddGradients& in, void* stream);

}  // namespace fused_mi
