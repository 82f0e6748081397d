//! What stewards, operators and the federation's charter allow (specs/policy.md): Cedar policies judged in
//! three layers that must all allow, with reasons in words. Pure: no disk, clock or network.
