_base_ = './mae-dpp_vit-large-p16_8xb512-amp-coslr-300e_in1k.py'

# As upstream's mae/benchmarks/vit-large-p16_8xb128-fsdp-coslr-50e_in1k.py. A full state dict is
# one stock checkpoint, which upstream's linear-probe and fine-tune configs load.
runner_type = 'FlexibleRunner'
strategy = dict(
    type='FSDPStrategy',
    state_dict_cfg='full',
    model_wrapper=dict(
        auto_wrap_policy=dict(
            type='torch.distributed.fsdp.wrap.size_based_auto_wrap_policy', min_num_params=1e7)))
