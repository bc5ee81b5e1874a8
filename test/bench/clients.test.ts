import { expect, test } from "vitest";
import { parseFioReport, parseOurReport } from "./clients.ts";

const idle = { total_ios: 0, runtime: 0, clat_ns: {} };

function fioReport(change: object): string {
  const job = {
    error: 0,
    read: idle,
    write: {
      total_ios: 5000,
      runtime: 500,
      clat_ns: { percentile: { "50.000000": 2000, "99.000000": 40_000, "99.900000": 60_000 } },
    },
  };
  return `note: something\n${JSON.stringify({ jobs: [{ ...job, ...change }] })}`;
}

test("reads fio's report of the direction that was used", () => {
  const report = parseFioReport(fioReport({}));
  expect(report).toMatchObject({ operations: 5000, seconds: 0.5, latency: { p50: 2, p99: 40, p999: 60 } });
});

test("a job that failed or did nothing has no figures", () => {
  expect(() => parseFioReport(fioReport({ error: 5 }))).toThrow("fio: error 5");
  expect(() => parseFioReport(fioReport({ write: idle }))).toThrow("fio: nothing was done");
  expect(() => parseFioReport("fio: no such engine")).toThrow();
});

test("reads the report of our own clients", () => {
  const latency = { mean: 3, p50: 2.5, p90: 3, p99: 9, p999: 20, max: 90 };
  expect(parseOurReport(JSON.stringify({ ios: 1000, seconds: 2, latency_us: latency }))).toMatchObject({
    operations: 1000,
    seconds: 2,
    latency: { p50: 2.5, p99: 9, p999: 20 },
  });
  expect(() => parseOurReport(JSON.stringify({ ios: 0, seconds: 2, latency_us: latency }))).toThrow("nothing was done");
});
