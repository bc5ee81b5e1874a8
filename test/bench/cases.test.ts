import { expect, test } from "vitest";
import { allCases } from "./cases.ts";
import { contenderKinds, takesPart } from "./contenders.ts";

test("trims leave the disks of other cases as they are, and concern those who can trim", () => {
  const trims = allCases.filter(({ pattern }) => pattern === "trim");
  expect(trims.length).toBeGreaterThan(0);
  expect(allCases.filter(({ image }) => image === "trimmed")).toEqual(trims);
  const names = trims.map((one) =>
    contenderKinds.filter((kind) => takesPart(kind, one, "buffered")).map(({ name }) => name),
  );
  for (const trimming of names) {
    expect(trimming).toEqual(["nbdkit-memory", "nbdkit-file", "qemu-raw", "qemu-vpc", "ours-nbd"]);
  }
});
