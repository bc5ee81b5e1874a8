import { describe, expect, it } from "vitest";
import { parseStack } from "./stack.ts";

describe("parseStack", () => {
  it.each([
    ["vhd:/a/b.vhd", { driver: "vhd", name: "/a/b.vhd" }],
    ["aio:relative", { driver: "aio", name: "relative" }],
    ["vhd:/with:colons:in", { driver: "vhd", name: "/with:colons:in" }],
  ])("reads %s", (text, image) => {
    expect(parseStack(text)).toEqual([image]);
  });

  it.each([
    ["/a/b.vhd", /no driver/],
    ["", /no driver/],
    ["qcow2:/x", /unknown driver 'qcow2' in 'qcow2:\/x': expected one of vhd, aio/],
    ["VHD:/x", /unknown driver/],
    [":/x", /unknown driver ''/],
    ["vhd:", /no path/],
  ])("refuses '%s'", (text, message) => {
    expect(() => parseStack(text)).toThrow(message);
  });
});
