//! A slow and obvious reading of the law, beside which the compiled one is tested.
