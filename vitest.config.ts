import { defineConfig } from "vitest/config";

// Needs the original: `make interop` alone runs it.
const withOriginal = ["test/interop-blktap.test.ts", "test/interop-check.test.ts", "test/interop-vhd-util.test.ts"];

const program = { pool: "forks", fileParallelism: false, testTimeout: 120_000, hookTimeout: 60_000 } as const;

// Unit tests stand beside the code; whole-program tests in test/ share the machine's disks and CPUs, so one at a time.
export default defineConfig({
  cacheDir: "build/vite", // the demonstration copies node_modules, which should not change
  test: {
    projects: [
      {
        test: {
          name: "unit",
          include: ["ts/**/*.test.ts", "scripts/**/*.test.ts"],
          pool: "forks",
        },
      },
      {
        test: {
          ...program,
          name: "program",
          include: ["test/**/*.test.ts"],
          exclude: withOriginal,
        },
      },
      ...(process.env.BLKTAP === undefined ? [] : [{ test: { ...program, name: "interop", include: withOriginal } }]),
    ],
  },
});
