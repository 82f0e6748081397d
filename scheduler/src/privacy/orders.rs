//! The orders α at which Rényi divergence is accounted.

/// How many there are.
pub(crate) const ORDERS_LEN: usize = 67;

/// 2 to 64, then 128, 256, 512, 1024: only integers, for which the subsampled Gaussian has a closed
/// form (Mironov, Talwar, Zhang 2019, §3.3).
pub const ORDERS: [u16; ORDERS_LEN] = orders();

const fn orders() -> [u16; ORDERS_LEN] {
    let mut orders = [0; ORDERS_LEN];
    let mut at = 0;
    while at < 63 {
        orders[at] = 2 + at as u16;
        at += 1;
    }
    orders[63] = 128;
    orders[64] = 256;
    orders[65] = 512;
    orders[66] = 1_024;
    orders
}
