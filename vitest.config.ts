import { defineConfig } from "vitest/config";

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
          name: "program",
          include: ["test/**/*.test.ts"],
          pool: "forks",
          fileParallelism: false,
          testTimeout: 120_000,
          hookTimeout: 60_000,
        },
      },
    ],
  },
});
