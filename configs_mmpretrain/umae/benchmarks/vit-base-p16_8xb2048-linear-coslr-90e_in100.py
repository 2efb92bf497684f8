_base_ = '../../dppmask/benchmarks/vit-base-p16_8xb2048-linear-coslr-90e_in100.py'
