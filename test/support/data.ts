/** Data for tests: the same for the same seed, and different everywhere else. */

import { createCipheriv, createHash } from "node:crypto";

export const SECTOR = 512;
export const MIB: number = 1 << 20;

/** Bytes that no program could come up with by itself. */
export function pattern(length: number, seed: number): Buffer {
  const key = createHash("sha256").update(`tapvhd ${seed}`).digest();
  return createCipheriv("aes-256-ctr", key, Buffer.alloc(16)).update(Buffer.alloc(length));
}

/** A generator of whole numbers: `random(n)` is one from 0 to n - 1. */
export function randomNumbers(seed: number): (below: number) => number {
  let state = (seed ^ 0x9e3779b9) >>> 0;
  return (below) => {
    // mulberry32
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return Math.floor((((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32) * below);
  };
}

export function sha256(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex");
}

/** Fails with the first byte at which two contents differ; the usual comparison would print both. */
export function expectSame(actual: Uint8Array, expected: Uint8Array, what: string): void {
  if (actual.length !== expected.length) {
    throw new Error(`${what}: ${actual.length} bytes where ${expected.length} were expected`);
  }
  if (Buffer.compare(actual, expected) === 0) return;
  const at = actual.findIndex((byte, index) => byte !== expected[index]);
  const sector = Math.floor(at / SECTOR);
  let wrong = 0;
  for (let start = 0; start < actual.length; start += SECTOR) {
    const end = start + SECTOR;
    if (Buffer.compare(actual.subarray(start, end), expected.subarray(start, end)) !== 0) wrong++;
  }
  const hex = (bytes: Uint8Array) => Buffer.from(bytes.subarray(at, at + 16)).toString("hex");
  throw new Error(
    `${what}: byte ${at} (sector ${sector}) is ${hex(actual)}, expected ${hex(expected)}; ${wrong} sectors differ`,
  );
}
