_base_ = '../../dppmask/benchmarks/vit-base-p16_8xb128-coslr-100e_in100.py'
