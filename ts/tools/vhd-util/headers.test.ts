import { afterAll, beforeAll, expect, it } from "vitest";
import { printable } from "../cli/output.ts";
import { footerLines, formatNumber, formatTime } from "./headers.ts";
import type { Footer } from "./image.ts";
import { volumeNameOf } from "./lvm.ts";

const zone = process.env.TZ;
beforeAll(() => {
  process.env.TZ = "UTC";
});
afterAll(() => {
  if (zone === undefined) delete process.env.TZ;
  else process.env.TZ = zone;
});

it("numbers are as C prints them", () => {
  expect(formatNumber(512, false)).toBe("512");
  expect(formatNumber(512, true)).toBe("0x200");
  expect(formatNumber(0, true)).toBe("0");
  expect(formatNumber(2n ** 64n - 1n, true)).toBe("0xffffffffffffffff");
});

it("times are as C prints them", () => {
  expect(formatTime(0)).toBe("Sat Jan  1 00:00:00 2000");
  expect(formatTime(848_875_456)).toBe("Tue Nov 24 22:44:16 2026");
});

it("nothing from a file talks to the terminal", () => {
  expect(printable("a\u001b[31mb\nü")).toBe("a\\x1b[31mb\\x0aü");
});

it("a footer of nothing has its lines", () => {
  const footer: Footer = {
    offset: 0n,
    cookie: "",
    features: 0,
    version: 0,
    dataOffset: 0n,
    timestamp: 0,
    creatorApplication: "",
    creatorVersion: 0,
    creatorHostOs: 0,
    originalSize: 0n,
    currentSize: 0n,
    geometry: 0,
    diskType: 0,
    checksum: 0,
    computedChecksum: 0xffffffff,
    uuid: "00000000-0000-0000-0000-000000000000",
    savedState: 0,
    hidden: 0,
  };
  expect(footerLines(footer, false)).toEqual([
    "VHD Footer Summary:",
    "-------------------",
    "Cookie              : ",
    "Features            : (0x00000000) ",
    "File format version : Major: 0, Minor: 0",
    "Data offset         : 0",
    "Timestamp           : Sat Jan  1 00:00:00 2000",
    "Creator Application : ''",
    "Creator version     : Major: 0, Minor: 0",
    "Creator OS          : Unknown!",
    "Original disk size  : 0 MB (0 Bytes)",
    "Current disk size   : 0 MB (0 Bytes)",
    "Geometry            : Cyl: 0, Hds: 0, Sctrs: 0",
    "                    : = 0 MB (0 Bytes)",
    "Disk type           : None",
    "Checksum            : 0x0|0xffffffff (Bad!)",
    "UUID                : 00000000-0000-0000-0000-000000000000",
    "Saved state         : No",
    "Hidden              : 0",
    "",
  ]);
});

it("volumes are named by the device mapper's paths", () => {
  expect(volumeNameOf("/dev/mapper/VG_XenStorage--a--b-VHD--1234--5678")).toBe("VHD-1234-5678");
  expect(volumeNameOf("vg-lv")).toBe("lv");
  expect(volumeNameOf("/dev/mapper/plain")).toBeUndefined();
  expect(volumeNameOf("")).toBeUndefined();
});
