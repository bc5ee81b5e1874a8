import { runSuite } from "./cli/suite.ts";
import { vhdUtil } from "./vhd-util/suite.ts";

void runSuite(vhdUtil);
