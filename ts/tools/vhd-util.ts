import { runSuite } from "./cli/suite.ts";
import { vhdUtil } from "./vhd-util/suite.ts";

await runSuite(vhdUtil);
