_base_ = './mae-dpp_vit-large-p16_8xb512-amp-coslr-300e_in1k.py'

# As upstream's mae/benchmarks/vit-large-p16_8xb128-ds-coslr-50e_in1k.py; needs deepspeed, which
# scales the loss itself.
optim_wrapper = dict(
    _delete_=True,
    type='DeepSpeedOptimWrapper',
    optimizer={{_base_.optim_wrapper.optimizer}},
    paramwise_cfg={{_base_.optim_wrapper.paramwise_cfg}})

runner_type = 'FlexibleRunner'
strategy = dict(
    type='DeepSpeedStrategy',
    fp16=dict(enabled=True, loss_scale=0, loss_scale_window=500, initial_scale_power=15),
    inputs_to_half=['inputs'],
    zero_optimization=dict(stage=1, overlap_comm=True, contiguous_gradients=True))
