// The operators, as they are registered: see their schemas in operators.cpp.
#pragma once

#include "tensors.h"

#include <optional>
#include <vector>

namespace fused_mi {

void variance(
    const Tensor& stds, const Tensor& mask, const Tensor& other_mask, std::vector<int64_t> roles,
    double factor, double smallest, double largest, const Tensor& eps);

void jensen(
    const Tensor& y, const Tensor& x, const Tensor& mu, const Tensor& stds, const Tensor& sample_mask,
    const Tensor& component_mask, std::vector<int64_t> mixtures, bool alone, double divisor,
    const Tensor& header, const Tensor& state, const Tensor& counts, std::vector<int64_t> roles,
    double factor, double smallest, double largest, const Tensor& total, const Tensor& terms);

void jensen_backward(
    std::optional<Tensor> of_total, std::optional<Tensor> of_terms, const Tensor& y, const Tensor& x,
    const Tensor& mu, const Tensor& stds, const Tensor& sample_mask, const Tensor& component_mask,
    std::vector<int64_t> mixtures, bool alone, double divisor, const Tensor& header,
    const Tensor& state, const Tensor& counts, std::vector<int64_t> passes, std::optional<Tensor> d_y,
    std::optional<Tensor> d_x, std::optional<Tensor> d_mu, std::optional<Tensor> d_stds);

void log_determinants(
    const Tensor& stds, const Tensor& active, const Tensor& eps, int64_t start, bool wide,
    const Tensor& irregular, const Tensor& logs);

void distances(
    const Tensor& y, const Tensor& x, std::optional<Tensor> mu, const Tensor& stds,
    const Tensor& sample_active, const Tensor& component_active, const Tensor& eps,
    int64_t sample_start, int64_t component_start, const Tensor& irregular, const Tensor& shift,
    const Tensor& q);

void samples_gradient(
    const Tensor& y, const Tensor& x, std::optional<Tensor> mu, const Tensor& stds,
    const Tensor& sample_active, const Tensor& component_active, const Tensor& eps,
    int64_t sample_start, int64_t component_start, const Tensor& irregular, const Tensor& shift,
    const Tensor& upstream, const Tensor& d_y);

void components_gradient(
    const Tensor& y, const Tensor& x, std::optional<Tensor> mu, const Tensor& stds,
    const Tensor& sample_active, const Tensor& component_active, const Tensor& eps,
    int64_t sample_start, int64_t component_start, const Tensor& irregular, const Tensor& shift,
    std::optional<Tensor> upstream, std::optional<Tensor> of_logs, std::optional<Tensor> own_eps,
    std::optional<Tensor> own_active, std::optional<Tensor> of_own, std::optional<Tensor> d_x,
    std::optional<Tensor> d_mu, std::optional<Tensor> d_stds);

void logsumexp(
    const Tensor& energies, std::optional<int64_t> own, std::optional<Tensor> origins, bool left_out,
    const Tensor& rows);

void logsumexp_backward(
    const Tensor& upstream, const Tensor& energies, const Tensor& rows, std::optional<int64_t> own,
    std::optional<Tensor> origins, bool left_out, const Tensor& gradient);

void logsumexp_of_pairs(
    const Tensor& y, const Tensor& x, const Tensor& mu, const Tensor& stds, const Tensor& sample_mask,
    const Tensor& component_mask, std::vector<int64_t> mixtures, bool alone, const Tensor& header,
    std::vector<int64_t> roles, double factor, double smallest, double largest,
    std::optional<Tensor> log_weights, double offset, std::optional<int64_t> own,
    std::optional<Tensor> origins, bool left_out, const Tensor& rows, std::optional<Tensor> energies,
    double log_partners, double factor_of_terms, std::optional<Tensor> total, std::optional<Tensor> terms);

void logsumexp_of_pairs_backward(
    std::optional<Tensor> of_total, std::optional<Tensor> of_terms, std::optional<Tensor> of_samples,
    const Tensor& y, const Tensor& x, const Tensor& mu, const Tensor& stds, const Tensor& sample_mask,
    const Tensor& component_mask, std::vector<int64_t> mixtures, bool alone, const Tensor& header,
    std::optional<Tensor> log_weights, double offset, std::optional<int64_t> own,
    std::optional<Tensor> origins, bool left_out, const Tensor& rows, std::optional<Tensor> energies,
    double factor_of_terms, bool each, int64_t block_rows, int64_t block_columns, std::optional<Tensor> d_y,
    std::optional<Tensor> d_x, std::optional<Tensor> d_mu, std::optional<Tensor> d_stds,
    std::optional<Tensor> d_log_weights);

}  // namespace fused_mi
