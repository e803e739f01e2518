//! The circuits of the S-boxes, found by `cargo run --release -p pinseal-bitslice-des --example find_circuits`. The test
//! `every_circuit_is_its_table` compares each with the table of FIPS 46-3.

use crate::word::Word;

/// S-box 1, 52 operations.
#[inline(always)]
pub(crate) fn s1<W: Word>([a, b, c, d, e, f]: [W; 6]) -> [W; 4] {
    let t1 = !d;
    let t2 = a ^ t1;
    let t3 = a | d;
    let t4 = t3.and_not(e);
    let t5 = t2 & t4;
    let t6 = f.and_not(t5);
    let t7 = t2 | t6;
    let t8 = c ^ t7;
    let t9 = d.and_not(a);
    let t10 = t6 | t9;
    let t11 = e ^ t10;
    let t12 = t8 & t11;
    let t13 = t2 ^ t12;
    let t14 = t8 ^ t13;
    let t15 = t4 | t14;
    let t16 = b & t15;
    let t17 = t13 ^ t16;
    let t18 = e & t17;
    let t19 = t3 ^ t4;
    let t20 = c ^ t19;
    let t21 = t8.and_not(t20);
    let t22 = f | t20;
    let t23 = a & t22;
    let t24 = t23.and_not(d);
    let t25 = t18 | t24;
    let t26 = b ^ t25;
    let t27 = t8.and_not(t23);
    let t28 = t27.and_not(f);
    let t29 = t20 ^ t28;
    let t30 = t3.and_not(t13);
    let t31 = t17.and_not(t24);
    let t32 = t30 | t31;
    let t33 = t29.and_not(t32);
    let t34 = t26.and_not(t33);
    let t35 = t21 ^ t34;
    let t36 = t11 ^ t35;
    let t37 = t18 ^ t36;
    let t38 = t29.and_not(b);
    let t39 = t30 ^ t38;
    let t40 = t14.and_not(e);
    let t41 = t39 ^ t40;
    let t42 = t6 ^ t41;
    let t43 = t6 ^ t17;
    let t44 = f ^ t43;
    let t45 = t17 ^ t41;
    let t46 = t32.and_not(b);
    let t47 = t36 | t45;
    let t48 = e & t47;
    let t49 = f ^ t36;
    let t50 = t48 | t49;
    let t51 = t46 ^ t50;
    let t52 = t45 ^ t51;
    [t37, t42, t44, t52]
}

/// S-box 2, 49 operations.
#[inline(always)]
pub(crate) fn s2<W: Word>([a, b, c, d, e, f]: [W; 6]) -> [W; 4] {
    let t1 = f.and_not(c);
    let t2 = b ^ f;
    let t3 = t2.and_not(f);
    let t4 = d.and_not(t3);
    let t5 = !a;
    let t6 = c | t2;
    let t7 = t5 ^ t6;
    let t8 = c ^ t7;
    let t9 = t4 ^ t8;
    let t10 = t1 ^ t9;
    let t11 = b | t10;
    let t12 = t11.and_not(e);
    let t13 = d ^ t12;
    let t14 = a.and_not(f);
    let t15 = t13.and_not(t14);
    let t16 = a & t3;
    let t17 = t16 | t1;
    let t18 = c ^ d;
    let t19 = t17 & t18;
    let t20 = e ^ t19;
    let t21 = t5 | t20;
    let t22 = t7 ^ t21;
    let t23 = t22.and_not(t1);
    let t24 = t2 ^ t23;
    let t25 = t15 ^ t24;
    let t26 = e.and_not(t19);
    let t27 = t9 ^ t26;
    let t28 = t14 ^ t21;
    let t29 = t28.and_not(e);
    let t30 = t25.and_not(t27);
    let t31 = t24 | t30;
    let t32 = b ^ t9;
    let t33 = t31 ^ t32;
    let t34 = t11 ^ t33;
    let t35 = e & t31;
    let t36 = t7 | t25;
    let t37 = t35 ^ t36;
    let t38 = t29 ^ t37;
    let t39 = t34 | t38;
    let t40 = t27 ^ t39;
    let t41 = t40.and_not(d);
    let t42 = t29 ^ t41;
    let t43 = t8 ^ t42;
    let t44 = t43 ^ t24;
    let t45 = t23.and_not(e);
    let t46 = t45.and_not(t25);
    let t47 = f.and_not(t37);
    let t48 = t46 ^ t47;
    let t49 = t32 ^ t48;
    [t25, t27, t44, t49]
}

/// S-box 3, 49 operations.
#[inline(always)]
pub(crate) fn s3<W: Word>([a, b, c, d, e, f]: [W; 6]) -> [W; 4] {
    let t1 = a ^ e;
    let t2 = c ^ d;
    let t3 = d | f;
    let t4 = a | t2;
    let t5 = a.and_not(t3);
    let t6 = t1 ^ t5;
    let t7 = t4.and_not(t6);
    let t8 = d ^ t7;
    let t9 = c ^ f;
    let t10 = t8.and_not(t9);
    let t11 = a & t10;
    let t12 = b.and_not(t11);
    let t13 = t12.and_not(t3);
    let t14 = t2 | t13;
    let t15 = t14.and_not(e);
    let t16 = b ^ t15;
    let t17 = t10 & t12;
    let t18 = t16.and_not(t17);
    let t19 = t3 ^ t18;
    let t20 = c & t19;
    let t21 = a ^ t19;
    let t22 = t14 ^ t21;
    let t23 = !t22;
    let t24 = t7 ^ t9;
    let t25 = t12 ^ t24;
    let t26 = t23.and_not(t25);
    let t27 = t26.and_not(t18);
    let t28 = t20 ^ t27;
    let t29 = t28.and_not(b);
    let t30 = f.and_not(t26);
    let t31 = t29 ^ t30;
    let t32 = t2 ^ t31;
    let t33 = t1 ^ t32;
    let t34 = d & f;
    let t35 = a.and_not(t23);
    let t36 = e ^ t35;
    let t37 = t34 & t36;
    let t38 = t21 ^ t37;
    let t39 = t12 ^ t22;
    let t40 = t24.and_not(t39);
    let t41 = t40.and_not(t13);
    let t42 = t38 ^ t41;
    let t43 = c & t42;
    let t44 = t43.and_not(t27);
    let t45 = t39 ^ t44;
    let t46 = t34 ^ t45;
    let t47 = b & t37;
    let t48 = t46 ^ t47;
    let t49 = t33 ^ t48;
    [t33, t38, t49, t25]
}

/// S-box 4, 36 operations.
#[inline(always)]
pub(crate) fn s4<W: Word>([a, b, c, d, e, f]: [W; 6]) -> [W; 4] {
    let t1 = b ^ d;
    let t2 = a | t1;
    let t3 = !c;
    let t4 = t3.and_not(b);
    let t5 = t2 ^ t4;
    let t6 = a & c;
    let t7 = d ^ t6;
    let t8 = t7.and_not(e);
    let t9 = t5 ^ t8;
    let t10 = t3 ^ t9;
    let t11 = a ^ t10;
    let t12 = t3.and_not(t11);
    let t13 = t9 | t12;
    let t14 = t13.and_not(e);
    let t15 = t11.and_not(e);
    let t16 = a ^ t15;
    let t17 = a | e;
    let t18 = t6 ^ t17;
    let t19 = t18.and_not(t7);
    let t20 = t3 ^ t19;
    let t21 = t12 ^ t14;
    let t22 = t1.and_not(t21);
    let t23 = t20 ^ t22;
    let t24 = f ^ t23;
    let t25 = t16 ^ t24;
    let t26 = f.and_not(t25);
    let t27 = t14 ^ t26;
    let t28 = b.and_not(t20);
    let t29 = t5 ^ t28;
    let t30 = t27 ^ t29;
    let t31 = t25 ^ t30;
    let t32 = t12 ^ t24;
    let t33 = f | t32;
    let t34 = t11 ^ t33;
    let t35 = t29 ^ t34;
    let t36 = t32 ^ t35;
    [t30, t31, t35, t36]
}

/// S-box 5, 52 operations.
#[inline(always)]
pub(crate) fn s5<W: Word>([a, b, c, d, e, f]: [W; 6]) -> [W; 4] {
    let t1 = f.and_not(c);
    let t2 = e | t1;
    let t3 = a ^ e;
    let t4 = c | t3;
    let t5 = t4.and_not(f);
    let t6 = e | t5;
    let t7 = c ^ t6;
    let t8 = t7.and_not(a);
    let t9 = d ^ t8;
    let t10 = a ^ t9;
    let t11 = f & t10;
    let t12 = c ^ t11;
    let t13 = t2 & t12;
    let t14 = f ^ t13;
    let t15 = t9 | t10;
    let t16 = t12 & t15;
    let t17 = !d;
    let t18 = t10 | t17;
    let t19 = t16 ^ t18;
    let t20 = t19.and_not(t8);
    let t21 = t2.and_not(t18);
    let t22 = b.and_not(t21);
    let t23 = a & t22;
    let t24 = t23.and_not(e);
    let t25 = t20 ^ t24;
    let t26 = t3 ^ t13;
    let t27 = b ^ t14;
    let t28 = t19.and_not(b);
    let t29 = t27.and_not(t28);
    let t30 = t5 | t29;
    let t31 = t26.and_not(t30);
    let t32 = t25 ^ t31;
    let t33 = b.and_not(t25);
    let t34 = t3 ^ t33;
    let t35 = e.and_not(t34);
    let t36 = t28 ^ t35;
    let t37 = t10 ^ t36;
    let t38 = t28 | t37;
    let t39 = t32 ^ t38;
    let t40 = t14 ^ t39;
    let t41 = t20 ^ t27;
    let t42 = t12 ^ t38;
    let t43 = t5 ^ t39;
    let t44 = t42.and_not(t43);
    let t45 = t44.and_not(d);
    let t46 = t41 ^ t45;
    let t47 = t3 ^ t5;
    let t48 = t1 | t7;
    let t49 = d | t48;
    let t50 = t18 ^ t22;
    let t51 = t49.and_not(t50);
    let t52 = t47 ^ t51;
    [t40, t46, t37, t52]
}

/// S-box 6, 47 operations.
#[inline(always)]
pub(crate) fn s6<W: Word>([a, b, c, d, e, f]: [W; 6]) -> [W; 4] {
    let t1 = a ^ e;
    let t2 = a | d;
    let t3 = c.and_not(t2);
    let t4 = t1.and_not(t3);
    let t5 = t4.and_not(c);
    let t6 = a.and_not(t1);
    let t7 = b ^ t6;
    let t8 = t5 ^ t7;
    let t9 = c | t8;
    let t10 = d ^ t9;
    let t11 = t1 ^ t10;
    let t12 = t11.and_not(d);
    let t13 = t8 ^ t12;
    let t14 = t1 ^ t13;
    let t15 = t14.and_not(b);
    let t16 = t10 ^ t15;
    let t17 = e & t16;
    let t18 = t5 ^ t17;
    let t19 = f.and_not(t18);
    let t20 = t14 ^ t16;
    let t21 = t19.and_not(t20);
    let t22 = !d;
    let t23 = t22.and_not(e);
    let t24 = t23.and_not(c);
    let t25 = t7.and_not(t17);
    let t26 = t11 ^ t19;
    let t27 = c ^ t26;
    let t28 = t25.and_not(t27);
    let t29 = f.and_not(t28);
    let t30 = t24 ^ t29;
    let t31 = t11 ^ t30;
    let t32 = t21 | t31;
    let t33 = b.and_not(t21);
    let t34 = t22 | t33;
    let t35 = c ^ t34;
    let t36 = t4 ^ t35;
    let t37 = a & t15;
    let t38 = f | t37;
    let t39 = b ^ t38;
    let t40 = t36 ^ t39;
    let t41 = t16 ^ t23;
    let t42 = t7.and_not(t41);
    let t43 = t27 ^ t42;
    let t44 = f & t2;
    let t45 = t10 ^ t34;
    let t46 = t44.and_not(t45);
    let t47 = t13 ^ t46;
    [t32, t40, t43, t47]
}

/// S-box 7, 47 operations.
#[inline(always)]
pub(crate) fn s7<W: Word>([a, b, c, d, e, f]: [W; 6]) -> [W; 4] {
    let t1 = b & d;
    let t2 = e ^ f;
    let t3 = t1 ^ t2;
    let t4 = d & t3;
    let t5 = b ^ t4;
    let t6 = t5.and_not(f);
    let t7 = c ^ t6;
    let t8 = t7.and_not(t6);
    let t9 = t3 ^ t8;
    let t10 = t9.and_not(f);
    let t11 = !e;
    let t12 = t10 | t11;
    let t13 = t9 ^ t12;
    let t14 = t13.and_not(t4);
    let t15 = a.and_not(t14);
    let t16 = t10 ^ t15;
    let t17 = t7 ^ t16;
    let t18 = d ^ t8;
    let t19 = t12 & t18;
    let t20 = t7 ^ t19;
    let t21 = f ^ t20;
    let t22 = t21.and_not(b);
    let t23 = t17 ^ t22;
    let t24 = t14 ^ t23;
    let t25 = a.and_not(t24);
    let t26 = t9 ^ t25;
    let t27 = t18 & t24;
    let t28 = b ^ t27;
    let t29 = a ^ t28;
    let t30 = f.and_not(t29);
    let t31 = t30.and_not(t27);
    let t32 = a ^ t31;
    let t33 = t26 ^ t32;
    let t34 = t24 ^ t33;
    let t35 = t5 | t18;
    let t36 = f | t22;
    let t37 = t36.and_not(t14);
    let t38 = t4 ^ t37;
    let t39 = b.and_not(t38);
    let t40 = t35.and_not(t39);
    let t41 = t17 ^ t40;
    let t42 = d.and_not(t38);
    let t43 = t35.and_not(t42);
    let t44 = t2 ^ t43;
    let t45 = t30 & t34;
    let t46 = a.and_not(t45);
    let t47 = t44 ^ t46;
    [t26, t34, t41, t47]
}

/// S-box 8, 45 operations.
#[inline(always)]
pub(crate) fn s8<W: Word>([a, b, c, d, e, f]: [W; 6]) -> [W; 4] {
    let t1 = b | c;
    let t2 = t1.and_not(f);
    let t3 = a ^ c;
    let t4 = a.and_not(t2);
    let t5 = b | t4;
    let t6 = e ^ f;
    let t7 = t5 | t6;
    let t8 = t7.and_not(e);
    let t9 = t3 ^ t8;
    let t10 = t2 ^ t9;
    let t11 = t1 ^ t10;
    let t12 = !b;
    let t13 = e.and_not(t4);
    let t14 = a | t13;
    let t15 = t12 | t14;
    let t16 = t15.and_not(d);
    let t17 = b ^ t16;
    let t18 = t3.and_not(t13);
    let t19 = f.and_not(t11);
    let t20 = t18.and_not(t19);
    let t21 = t17 ^ t20;
    let t22 = t6 ^ t21;
    let t23 = t20.and_not(f);
    let t24 = t22 ^ t23;
    let t25 = t24.and_not(d);
    let t26 = t11 ^ t25;
    let t27 = t11 ^ t22;
    let t28 = a.and_not(f);
    let t29 = t5 & t28;
    let t30 = t27 | t29;
    let t31 = t10 ^ t30;
    let t32 = t26 ^ t31;
    let t33 = e & t1;
    let t34 = t12 & t25;
    let t35 = t19.and_not(t34);
    let t36 = t14 ^ t35;
    let t37 = t36.and_not(d);
    let t38 = t18 ^ t37;
    let t39 = t38.and_not(t34);
    let t40 = t12 ^ t39;
    let t41 = t33 | t40;
    let t42 = t32 ^ t41;
    let t43 = b ^ t28;
    let t44 = t42 ^ t43;
    let t45 = t38 ^ t43;
    [t44, t31, t45, t26]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::s_boxes::S_BOXES;

    /// All 64 inputs at once: bit `x` of a word belongs to the input `x`.
    #[test]
    fn every_circuit_is_its_table() {
        let inputs = std::array::from_fn(|bit| (0..64).fold(0, |word, x: u64| word | (((x >> (5 - bit)) & 1) << x)));
        let circuits = [s1, s2, s3, s4, s5, s6, s7, s8].map(|circuit: fn([u64; 6]) -> [u64; 4]| circuit(inputs));
        for (number, (outputs, table)) in circuits.into_iter().zip(S_BOXES).enumerate() {
            for x in 0..64 {
                let value = outputs.into_iter().fold(0, |value, word| (value << 1) | ((word >> x) & 1) as u8);
                let (row, column) = (((x >> 4) & 2) | (x & 1), (x >> 1) & 15);
                assert_eq!(value, table[row][column], "S-box {}, input {x}", number + 1);
            }
        }
    }
}
