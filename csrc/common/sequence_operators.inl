// The operators that a sequence may call; included in the namespace of each device, after its
// operators. Their numbers are those of _OPERATORS in bnn_ext/ops/sequence.py.

constexpr sequence::Operator kSequenceOperators[] = {
    sequence::call<pack>,
    sequence::call<flatten>,
    sequence::call<linear>,
    sequence::call<linear_float>,
    sequence::call<linear_bits>,
    sequence::call<linear_fused>,
    sequence::call<conv2d>,
    sequence::call<conv2d_float>,
    sequence::call<conv2d_bits>,
    sequence::call<conv2d_fused>,
    sequence::call<binary_weight_linear>,
    sequence::call<binary_weight_linear_bits>,
    sequence::call<binary_weight_conv2d>,
    sequence::call<binary_weight_conv2d_bits>,
    sequence::call<max_pool2d>,
    sequence::call<max_pool2d_float>,
    sequence::call<avg_pool2d>,
    sequence::call<global_avg_pool2d>,
    sequence::call<select_channels>,
    sequence::call<elementwise>,
    sequence::call<permuted>,
    sequence::call<torch_linear>,
};
